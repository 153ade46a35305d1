"""An agent without Prefect finds its jobs by itself, whatever the exchange does meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

import pytest

from fedflow.errors import Refusal, Violation
from fedflow.exchange import MemoryExchange, layout
from fedflow.site import agent as agents
from fedflow.site.agent import SiteAgent
from fedflow.site.config import init_site, open_site
from fedflow.site.session import SessionEnd


class Moody(MemoryExchange):
    """Raises what is in ``moods``, one per listing, and then works."""

    def __init__(self, moods):
        super().__init__()
        self.moods = list(moods)

    def list(self, prefix):
        if self.moods:
            raise self.moods.pop(0)
        return super().list(prefix)


@pytest.fixture
async def following(tmp_path, monkeypatch):
    """``follow(exchange, ends)``: the jobs whose sessions were opened, one end for each."""
    init_site(tmp_path / "site", label="berlin", exchange=str(tmp_path / "exchange"))
    agent = SiteAgent(open_site(tmp_path / "site"))
    real = asyncio.sleep
    monkeypatch.setattr(agents.asyncio, "sleep", lambda seconds: real(0))

    async def follow(exchange, ends):
        opened = []
        done = asyncio.Event()

        def open_(job, manifest):
            opened.append(job)

            async def session():
                if len(opened) == len(ends):
                    done.set()
                return ends[len(opened) - 1]

            return agents._Running(job, manifest, asyncio.create_task(session()))

        agent._open = open_
        agent._services = dataclasses.replace(agent._services, exchange=exchange)
        task = asyncio.create_task(agent._follow_exchange())
        async with asyncio.timeout(30):
            await done.wait()
        for _ in range(50):  # long enough to join anything a second time
            await real(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return opened

    yield follow
    agent._ledger.close()


OK = SessionEnd("completed")


async def test_jobs_are_joined_once_each_and_ended_ones_never(following):
    exchange = MemoryExchange()
    for job in ("one", "two", "over"):
        exchange.put(layout.manifest(job), b"m")
    exchange.put(layout.end("over"), b"e")
    assert await following(exchange, [OK, OK]) == ["one", "two"]


async def test_an_exchange_that_is_away_or_refuses_is_asked_again(following, caplog):
    refusal = Refusal("not-a-member", "this key was revoked")
    exchange = Moody([OSError("away"), refusal, refusal, Violation("odd", "odd"), OSError()])
    exchange.put(layout.manifest("one"), b"m")
    with caplog.at_level(logging.WARNING, "fedflow.site"):
        assert await following(exchange, [OK]) == ["one"]
    assert [r.getMessage() for r in caplog.records].count(
        "the exchange cannot be used: this key was revoked"
    ) == 1


async def test_a_session_that_failed_is_tried_again_and_a_refused_one_is_not(following):
    exchange = MemoryExchange()
    exchange.put(layout.manifest("one"), b"m")
    ends = [SessionEnd("error", "no-manifest"), SessionEnd("refused", "policy")]
    assert await following(exchange, ends) == ["one", "one"]


async def test_one_odd_end_does_not_hide_the_next_job(following):
    exchange = MemoryExchange()
    for job in ("a", "b"):
        exchange.put(layout.manifest(job), b"m")
    exchange.put(layout.end("a"), bytes(layout.MAX_SEALED_BYTES + 1))
    assert await following(exchange, [OK]) == ["b"]
