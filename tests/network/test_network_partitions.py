"""Links that are cut, slow or one-way while a real job runs over a relay between machines."""

import sys

import pytest
from hosts import hosts, need_hosts
from network_federation import HOSTS, PATIENCE, RELAY, SITES, Federation, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LISTEN = """
import socket
server = socket.create_server(("0.0.0.0", 9999))
while True:
    server.accept()[0].close()
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 9999), 3).close()"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    need_hosts()
    with hosts(*HOSTS) as made:
        federation = Federation(tmp_path_factory.mktemp("network") / "world", made)
        try:
            federation.start()
            yield federation
        finally:
            for host in made.values():
                host.close()
            federation.world.close(keep=True)


@pytest.fixture(autouse=True)
def healed(federation):
    yield
    federation.heal()


def test_a_site_that_is_cut_off_is_done_without_and_returns(federation):
    training, site = federation.train(rounds=50, leg_seconds=8.0), federation.hosts["site-4"]
    until("its advert in the third order", training.put(3, "advert", "site-4"))
    site.cut()
    cut_in = max(training.opened(), default=0)
    until("sums without it", lambda: max(training.opened(), default=0) > cut_in + 2)
    site.heal()
    training.end()
    check = training.check()
    everyone, others = set(SITES), set(SITES) - {"site-4"}
    parts = [training.labels(check.survivors[sequence]) for sequence in sorted(check.survivors)]
    assert parts[-1] == everyone
    assert others in parts


def test_a_relay_that_is_cut_off_holds_the_job_up_and_no_more(federation):
    training, hub = federation.train(rounds=6, leg_seconds=5.0), federation.hosts["hub"]
    until("two sums", training.has_opened(2))
    hub.cut()
    before = training.opened()
    with pytest.raises(AssertionError, match="waited"):  # longer than any leg
        until("nothing", training.has_opened(len(before) + 2), 7.0)
    assert training.process.poll() is None
    hub.heal()
    training.end()
    training.check()


def test_a_coordinator_that_is_cut_off_comes_back(federation):
    training, lead = federation.train(rounds=6, leg_seconds=5.0), federation.hosts["lead"]
    until("two sums", training.has_opened(2))
    lead.cut()
    before = training.opened()  # one more may be on its way
    with pytest.raises(AssertionError, match="waited"):
        until("nothing", training.has_opened(len(before) + 2), 7.0)
    assert training.process.poll() is None
    lead.heal()
    training.end()
    training.check()


def test_slow_links_take_part(federation):
    for label in ("site-1", "site-2"):
        federation.hosts[label].slow("256kbit")
    training = federation.train(rounds=3, leg_seconds=20.0)
    training.end()
    check = training.check()
    parts = [training.labels(sites) for sites in check.survivors.values()]
    assert all({"site-1", "site-2"} <= part for part in parts)


def test_a_site_that_hears_no_answers_pays_nothing_twice(federation):
    """What it sends arrives and what is answered does not: it cannot know, and asks again."""
    training, hub = federation.train(rounds=12, leg_seconds=6.0), federation.hosts["hub"]
    until("its advert in the third order", training.put(3, "advert", "site-3"))
    hub.answer_nothing_to(federation.hosts["site-3"])
    before = max(training.opened(), default=0)
    until("sums beyond", lambda: max(training.opened(), default=0) > before + 1)
    hub.heal()
    training.end()
    training.check()


def test_sites_that_nobody_can_connect_to(federation):
    hub, site = federation.hosts["hub"], federation.hosts["site-2"]
    listener = site.start([sys.executable, "-c", LISTEN], federation.world.logs("listener"))

    def connects():
        ask = [sys.executable, "-c", CONNECT, site.address]
        return hub.run(*ask, check=False).returncode == 0

    until("a way to the site before there is a firewall", connects, PATIENCE)
    for label in SITES:
        hub.only_answer(federation.hosts[label], RELAY)
    assert not connects()
    listener.kill()
    # Nor does an agent listen for anybody, on any port.
    for label in SITES:
        assert federation.hosts[label].run("ss", "-Hltun").stdout.strip() == ""
    training = federation.train(rounds=3, leg_seconds=20.0)
    training.end()
    check = training.check()
    assert all(training.labels(sites) == set(SITES) for sites in check.survivors.values())
