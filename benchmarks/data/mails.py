"""Mails of the SpamAssassin public corpus (2002 to 2005): what people wrote, and spam.

Headers say where a mail was collected, which gives away its label; only subject and text are used.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage

from benchmarks.data.fetch import MAILS

_FILE = re.compile(r"package/data/((?:easy-ham|hard-ham|spam)-\d)/[0-9a-f.]+\.json")
_MARKUP = re.compile(r"(?is)<(script|style)\b.*?</\1>|<[^>]*>|&[a-z#0-9]+;")
_CHARACTERS = 4_000


@dataclass(frozen=True)
class Mail:
    """``person`` is who it says it is from; ``mailing_list`` is "" for mail of no list."""

    person: str
    mailing_list: str
    text: str
    spam: bool


def load_mails() -> list[Mail]:
    """All different mails with a text, in the order of the archive; DataMissing without them."""
    seen: set[str] = set()
    out = []
    for group, raw in _files():
        mail = _read(raw, group.startswith("spam"))
        # Many mails are in the corpus several times: none may be in training and held out.
        digest = hashlib.sha256(mail.text.encode()).hexdigest()
        if mail.text and digest not in seen:
            seen.add(digest)
            out.append(mail)
    return out


def _files() -> Iterator[tuple[str, str]]:
    (name,) = MAILS.files
    with tarfile.open(MAILS.path(name)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            found = _FILE.fullmatch(member.name)
            file = archive.extractfile(member) if found else None
            if found and file:
                yield found[1], json.load(file)["text"]


def _read(raw: str, spam: bool) -> Mail:
    parsed = email.message_from_string(raw, policy=email.policy.compat32)
    sender = re.search(r"[\w.+-]+@[\w.-]+", str(parsed.get("From", "")))
    of_list = re.search(r"<([^<>@]+)>\s*$", str(parsed.get("List-Id", "")))
    text = f"{_header(parsed.get('Subject', ''))}\n{_body(parsed)}"
    text = " ".join(_MARKUP.sub(" ", text[: 4 * _CHARACTERS]).split())[:_CHARACTERS]
    return Mail(
        person=sender[0].lower() if sender else "nobody",
        mailing_list="" if spam or not of_list else of_list[1].lower().partition(".")[0],
        text=text,
        spam=spam,
    )


def _header(value: object) -> str:
    from email.header import decode_header, make_header

    try:
        return str(make_header(decode_header(str(value))))
    except (LookupError, ValueError):  # as spam has it
        return str(value)


def _body(parsed: email.message.Message | EmailMessage) -> str:
    parts = [part for part in parsed.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"] or parts[:1]
    texts = []
    for part in plain:
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            texts.append(payload.decode("utf-8", "replace"))
    return "\n".join(texts)


#: A site hosts some mailing lists; who writes to none is at the last.
HOSTS = {
    "fork": ("fork",),
    "linux": ("ilug", "iiu", "social", "webdev", "secprog"),
    "software": ("rpm-zzzlist", "exmh-users", "exmh-workers"),
    "filters": ("razor-users", "spamassassin-talk", "spamassassin-devel", "spamassassin-commits"),
    "direct": (),
}
#: Mails of one person that a site keeps: a feed of hundreds would be most of what it has.
MOST_OF_ONE = 4


def dealt(mails: list[Mail]) -> dict[str, list[Mail]]:
    """Mails by site: ham where its list is hosted, spam everywhere alike (by who sent it)."""
    hosts = {name: site for site, names in HOSTS.items() for name in names}
    names = list(HOSTS)
    out: dict[str, list[Mail]] = {site: [] for site in HOSTS}
    written: dict[tuple[str, str], int] = {}
    for mail in mails:
        site = hosts.get(mail.mailing_list, names[-1])
        if mail.spam:
            site = names[hashlib.sha256(mail.person.encode()).digest()[0] % len(names)]
        written[site, mail.person] = written.get((site, mail.person), 0) + 1
        if written[site, mail.person] <= MOST_OF_ONE:
            out[site].append(mail)
    return out
