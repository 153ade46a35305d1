"""What a site says of an order it takes no part in: once, whatever becomes of the site."""

import asyncio

from job_room import JOB, Room

from fedflow.exchange import layout
from fedflow.wire.messages import Decline, Kind
from fedflow.wire.sealed import unseal

KEY = layout.up(JOB, 1, "decline", 0)


async def test_a_site_that_starts_again_lets_its_first_answer_stand(tmp_path):
    """It came too late for the cohort, and says so; its next start finds the order claimed."""
    room = Room(tmp_path)
    late = room.sites["alpha"]
    for label in ("beta", "delta", "gamma"):
        room.sites[label].trainer.seconds = 2.0  # so long the order is open
    room.start("beta", "delta", "gamma")
    runner = room.runner()
    await runner.wait_for_sites(5, enough=3)
    runner.dispatch(1, 1, Kind.TRAIN)
    async with asyncio.timeout(10):
        while room.exchange.get(layout.down(JOB, 1, "roster", None)) is None:
            await asyncio.sleep(0.01)
        late.start()
        while (first := room.exchange.get(KEY)) is None:
            await asyncio.sleep(0.01)
    assert unseal(Decline, first, late.identity.public).code == "left-out"
    late.task.cancel()
    await asyncio.gather(late.task, return_exceptions=True)
    put = []
    late.restart()
    late.exchange.before_put = lambda key, payload: put.append(key)
    runner.update(await runner.collect())
    assert any("hello" in key for key in put)
    assert KEY not in put
    assert room.exchange.get(KEY) == first
    assert late.index not in runner.current.still_there() or not late.charges()
    await room.stop()
