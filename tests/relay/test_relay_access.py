"""Who may write and read what: a table, and the rule behind it for names nobody thought of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedflow.exchange import layout
from fedflow.exchange.base import check_key
from fedflow.exchange.places import OF_SITE, Kind, folder, place, size_limit
from fedflow.relay.access import JobFacts, Party, why_not_read, why_not_see, why_not_write
from fedflow.wire.membership import Role

SHA = "ab" * 32
KEYS = {name: bytes([n]) * 32 for n, name in enumerate(["a", "b", "out", "coord", "other", "aud"])}
JOB = JobFacts(KEYS["coord"], {KEYS["a"]: 0, KEYS["b"]: 10}, 1 << 40)
PARTIES = {
    "authority": Party(b"k" * 32, None, "authority"),
    "a": Party(KEYS["a"], Role.SITE, "a"),
    "b": Party(KEYS["b"], Role.SITE, "b"),
    "out": Party(KEYS["out"], Role.SITE, "out"),
    "coord": Party(KEYS["coord"], Role.COORDINATOR, "coord"),
    "other": Party(KEYS["other"], Role.COORDINATOR, "other"),
    "aud": Party(KEYS["aud"], Role.AUDITOR, "aud"),
}
EVERYBODY = set(PARTIES)

#: Name in the exchange; who may write it; who may read it.
TABLE = [
    ("federation/roster/000001", {"authority"}, EVERYBODY),
    ("jobs/j/manifest", {"authority", "coord"}, {"authority", "a", "b", "coord", "aud"}),
    (f"jobs/j/blobs/{SHA}", {"authority", "coord"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/countersign/0", {"a"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/countersign/10", {"b"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/countersign/1", set(), {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/hello/0-0123456789abcdef", {"a"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/rounds/000001/order", {"coord"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/rounds/000001/transcript", {"coord"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/rounds/000001/sum/0", {"coord"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/rounds/000001/down/roster/all", {"coord"}, {"authority", "a", "b", "coord", "aud"}),
    ("jobs/j/rounds/000001/down/delivery/0", {"coord"}, {"authority", "a", "coord", "aud"}),
    ("jobs/j/rounds/000001/down/delivery/10", {"coord"}, {"authority", "b", "coord", "aud"}),
    ("jobs/j/end", {"coord"}, {"authority", "a", "b", "coord", "aud"}),
    *(
        (f"jobs/j/rounds/000001/up/{leg}/10", {"b"}, {"authority", "a", "b", "coord", "aud"})
        for leg in ("advert", "shares", "masked", "signed", "unmask", "decline")
    ),
    ("jobs/j/rounds/000001/up/vector/0/7", {"a"}, {"authority", "a", "b", "coord", "aud"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "writers", "readers"), TABLE, ids=[row[0] for row in TABLE])
def test_who_may_write_and_read(key, writers, readers):
    where = place(key)
    may = {n for n, p in PARTIES.items() if why_not_write(p, where, JOB, SHA) is None}
    assert may == writers
    assert {n for n, p in PARTIES.items() if why_not_read(p, where, JOB) is None} == readers


def test_the_table_has_every_kind_of_place():
    assert {place(key).kind for key, _, _ in TABLE} == set(Kind)


def test_before_there_is_a_manifest_only_manifest_and_first_model_are_put():
    for key, _, _ in TABLE:
        where = place(key)
        may = {n for n, p in PARTIES.items() if why_not_write(p, where, None, SHA) is None}
        free = where.kind in (Kind.MANIFEST, Kind.BLOB)
        expected = {"authority", "coord", "other"} if free else set()
        assert may == ({"authority"} if where.kind is Kind.ROSTER else expected)
        if where.kind is not Kind.ROSTER:
            assert why_not_read(PARTIES["a"], where, None) is not None


def test_a_blob_is_named_by_its_bytes_for_everybody():
    where = place(f"jobs/j/blobs/{SHA}")
    for party in PARTIES.values():
        assert why_not_write(party, where, JOB, "cd" * 32) is not None


ODD_NAMES = [
    "", "jobs", "jobs/j", "jobs/j/", "jobs//manifest", "jobs/j/manifest/", "/jobs/j/manifest",
    "jobs/../jobs/j/manifest", "jobs/j/./manifest", "jobs/J/manifest", "jobs/-j/manifest",
    f"jobs/{'j' * 64}/manifest", "jobs/j/countersign/00", "jobs/j/countersign/01",
    "jobs/j/countersign/-1", "jobs/j/countersign/+1", "jobs/j/countersign/٣",
    "jobs/j/countersign/1 ", "jobs/j/countersign/1\n",
    "jobs/j/hello/0-0123456789ABCDEF", "jobs/j/hello/0-01234567",
    "jobs/j/rounds/1/order", "jobs/j/rounds/0000001/order", "jobs/j/rounds/00000١/order",
    "jobs/j/rounds/000001/up/advert/0/0", "jobs/j/rounds/000001/up/vector/0",
    "jobs/j/rounds/000001/up/vector/0/00", "jobs/j/rounds/000001/up/other/0",
    "jobs/j/rounds/000001/down/delivery/all", "jobs/j/rounds/000001/down/roster/0",
    "jobs/j/rounds/000001/sum/", f"jobs/j/blobs/{SHA.upper()}", f"jobs/j/blobs/{SHA}0",
    "jobs/j/%6danifest", "jobs/j/ｍanifest", "federation/roster/1", "federation/other",
    "x" * 600, "jobs/j/end\0", "jobs\\j\\end",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_is_no_place_is_nobodys(name):
    assert place(name) is None


def test_every_name_the_layout_makes_is_a_place():
    job, digest = "a" * 63, bytes(32)
    made = [
        (layout.manifest(job), Kind.MANIFEST),
        (layout.countersign(job, 16_383), Kind.COUNTERSIGN),
        (layout.hello(job, 0, digest), Kind.HELLO),
        (layout.order(job, 1), Kind.ORDER),
        (layout.up(job, 999_999, "masked", 16_383), Kind.UP),
        (layout.up(job, 1, "decline", 2), Kind.DECLINE),
        (layout.vector(job, 1, 2, 4095), Kind.VECTOR),
        (layout.down(job, 1, "roster"), Kind.DOWN),
        (layout.down(job, 1, "delivery", 3), Kind.DELIVERY),
        (layout.total(job, 1, 0), Kind.SUM),
        (layout.transcript(job, 1), Kind.TRANSCRIPT),
        (layout.end(job), Kind.END),
        (layout.blob(job, digest), Kind.BLOB),
        (layout.federation_roster(7), Kind.ROSTER),
    ]
    for key, kind in made:
        assert place(key).kind is kind
        assert size_limit(kind, 4) > 0
        above = key.rpartition("/")[0]
        while above:
            assert folder(above) is not None
            above = above.rpartition("/")[0]


names = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda *parts: "/".join(parts),
        st.sampled_from(["jobs", "federation", ".."]),
        st.sampled_from(["j", "k", "roster"]),
        st.sampled_from(["rounds", "countersign", "hello", "blobs", "manifest"]),
        st.sampled_from(["000001", "0", "10", "0-0123456789abcdef", SHA, ".."]),
        st.sampled_from(["up", "down", "sum", "order"]),
        st.sampled_from(["advert", "vector", "delivery", "roster", "0"]),
        st.sampled_from(["0", "10", "all"]),
    ),
    st.sampled_from([key for key, _, _ in TABLE]),
)


@given(names, st.sampled_from(sorted(PARTIES)), st.sampled_from([JOB, None]), st.booleans())
def test_no_member_can_ever_write_in_anothers_name(name, who, job, true_name):
    """Whatever the name: a site only below its own index, an auditor and a stranger nowhere."""
    where, party = place(name), PARTIES[who]
    if where is None:
        return
    check_key(name)  # a place is always a name that an exchange takes
    if why_not_write(party, where, job, SHA if true_name else "00" * 32) is not None:
        return
    if party.role is Role.SITE:
        assert where.kind in OF_SITE
        assert job.sites[party.key] == where.site
        assert str(where.site) in name.replace("-", "/").split("/")
    elif party.role is Role.COORDINATOR:
        assert where.kind not in OF_SITE | {Kind.ROSTER}
        assert job is None or job.coordinator == party.key
    else:
        assert party.role is None
        assert where.kind in (Kind.ROSTER, Kind.MANIFEST, Kind.BLOB)


def test_who_may_look_into_a_job():
    assert {n for n, p in PARTIES.items() if why_not_see(p, JOB) is None} == {
        "authority", "a", "b", "coord", "aud",
    }  # fmt: skip
