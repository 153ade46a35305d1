"""What a site needs of others: the time, the exchange, Prefect. All of it untrusted.

An answer is read up to a bound and only compared: nothing a server says is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import httpx

from fedflow.doctor.findings import Finding, fault, note, ok, warning
from fedflow.errors import FedflowError, Refusal
from fedflow.exchange import open_exchange
from fedflow.site.admission import CLOCK_SLACK
from fedflow.site.config import SiteFolder

TIMEOUT = 10.0
MAX_ANSWER = 1 << 16
#: Clocks further apart than this deserve a word (seconds).
LITTLE_SKEW = 5.0


class Answer:
    """Status, date and the first bytes of one HTTP answer."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self.began = time.time()
        with (
            httpx.Client(timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            self.status = response.status_code
            self.date = response.headers.get("date", "")
            self.body = b""
            for piece in response.iter_bytes():
                self.body += piece
                if len(self.body) > MAX_ANSWER:
                    break
        self.ended = time.time()

    def skew(self) -> float | None:
        """Seconds the server's clock is ahead, 0 when within the second and the request's time."""
        try:
            there = parsedate_to_datetime(self.date).timestamp()
        except (ValueError, TypeError):
            return None
        if there > self.ended:
            return there - self.ended
        return min(0.0, there + 1.0 - self.began)


def check_clock(sources: dict[str, float]) -> Iterator[Finding]:
    """This clock against the clocks of those that answered: seconds they are ahead, by name.

    They are untrusted, so one that differs alone says nothing: all have to.
    """
    if not sources:
        yield note(
            "clock",
            "nobody answered whose clock it could be compared with",
            f"keep it within {CLOCK_SLACK:.0f} s of the truth: `timedatectl`, chrony",
        )
        return
    name, least = min(sources.items(), key=lambda item: abs(item[1]))
    side = "ahead of" if least > 0 else "behind"
    says = f"the clock of {name} is {abs(least):.0f} s {side} this one"
    if abs(least) > CLOCK_SLACK:
        yield fault("clock", says, "set the clock: orders would read as expired or too long")
    elif abs(least) > LITTLE_SKEW:
        yield warning("clock", says, f"up to {CLOCK_SLACK:.0f} s are tolerated; use NTP")
    else:
        yield ok("clock", f"agrees with {name}")


def check_exchange(site: SiteFolder, skews: dict[str, float]) -> Iterator[Finding]:
    """Whether the mailbox can be listed as this site; notes a relay's clock in ``skews``."""
    url = site.exchange
    if not site.settings.exchange:
        yield fault("exchange", "none is set yet", "join a federation: `fedflow site join`")
        return
    if url.startswith(("http://", "https://")):
        try:
            answer = Answer(f"{url.rstrip('/')}/healthz")
        except (httpx.HTTPError, OSError) as error:
            yield fault("exchange", *_unreachable(url, error))
            return
        skew = answer.skew()
        if skew is not None:
            skews["the relay"] = skew
        if url.startswith("http://") and httpx.URL(url).host not in ("127.0.0.1", "localhost"):
            yield warning(
                "exchange",
                "is reached without TLS: others on the way see who talks when, and may cut it",
                "use https",
            )
    try:
        jobs = open_exchange(url, site.identity).list("jobs")
    except Refusal as error:
        yield fault("exchange", error.message, "ask the federation's authority; check the clock")
    except (FedflowError, OSError, httpx.HTTPError) as error:
        yield fault("exchange", *_unreachable(url, error))
    else:
        yield ok("exchange", f"{url} answers this site; it lists {len(jobs)} jobs")


def check_prefect(
    site: SiteFolder, api_url: str, headers: dict[str, str], skews: dict[str, float]
) -> Iterator[Finding]:
    """Whether the Prefect API answers, and knows a work pool for this site."""
    if not api_url:
        yield note(
            "prefect",
            "no PREFECT_API_URL is set here",
            "set it as the worker has it, or run the site with --no-prefect",
        )
        return
    root = api_url.rstrip("/")
    try:
        health = Answer(f"{root}/health", headers)
        pool = Answer(f"{root}/work_pools/{site.settings.label}", headers)
    except (httpx.HTTPError, OSError) as error:
        yield fault("prefect", *_unreachable(root, error))
        return
    skew = health.skew()
    if skew is not None:
        skews["the Prefect server"] = skew
    if health.status != 200 or pool.status in (401, 403):
        yield fault(
            "prefect",
            f"{root} answers with status {max(health.status, pool.status)}",
            "check the address, and the credential or proxy of this site",
        )
    elif pool.status == 404:
        yield note(
            "prefect",
            f"answers, and has no work pool {site.settings.label!r} yet",
            "the worker makes it at its first start",
        )
    elif b'"type":"fedflow"' not in pool.body.replace(b" ", b""):
        yield fault(
            "prefect",
            f"has a work pool {site.settings.label!r} of another type",
            "have it removed, or rename the site: the worker serves no other type",
        )
    else:
        yield ok("prefect", f"{root} answers; the work pool is of type fedflow")


def _unreachable(url: str, error: Exception) -> tuple[str, str]:
    return (
        f"{url} cannot be reached: {type(error).__name__}",
        "check address, name resolution, proxy and firewall (outbound only is enough)",
    )
