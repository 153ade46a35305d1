"""A training process that takes longer to start than a round lasts, as it may after a kill."""

import asyncio

import pytest
from plans import make_plan

from fedflow.learning.trivial import DATA_FILE, write_site
from fedflow.site.training_client import TrainingClient


@pytest.mark.slow
async def test_giving_up_on_a_training_process_that_starts_does_not_stop_its_start(tmp_path):
    """Or a site with short rounds never trains again: each of them would begin anew."""
    write_site(tmp_path / DATA_FILE, "alpha")
    plan = make_plan(plan__workload="trivial").canonical()
    client = TrainingClient(tmp_path / "log")

    def check():
        data = tmp_path / DATA_FILE
        return asyncio.create_task(client.run("check", workload="trivial", data=data, plan=plan))

    async def given_up():
        """A request that is cancelled once it waits for the process."""
        running = check()
        while client._process is None or client._process.returncode is not None:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return client._process.pid

    try:
        first = await given_up()
        assert await given_up() == first
        assert (await asyncio.wait_for(check(), 120)).vector.size == 0
        assert client._process.pid == first

        # Killed, it is started by the next request; that one is given up, the start goes on.
        client._process.kill()
        await client._process.wait()
        second = await given_up()
        assert second != first
        assert (await asyncio.wait_for(check(), 120)).vector.size == 0
        assert client._process.pid == second
    finally:
        await client.close()
