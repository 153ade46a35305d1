"""Many simulated sites in shards: their sum is the plain sum, on threads and on Dask."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
import pytest
from prefect.client.orchestration import get_client

from fedflow.errors import Aborted, InputError, Refusal, Violation
from fedflow.learning.model_file import decode_model, flatten
from fedflow.orchestration import scale_out
from fedflow.orchestration.delivery import until_recorded
from fedflow.simulation import sharded
from fedflow.simulation.sharded import open_sum, play_shard
from fedflow.simulation.shards import Post, Simulation, pack, unpack

SITES = 60


def make(folder, **changes):
    wanted = {"sites": SITES, "shards": 2, "dimension": 50, "lost": 0.1, "seconds": 120.0}
    return Simulation.create(folder / "simulation", **{**wanted, **changes})


def model_of(simulation, number):
    data = simulation.model(simulation.exchange(), number)
    return flatten(decode_model(data, simulation.spec))


def expected(simulation, rounds):
    """The model of plain arithmetic over whoever was not lost."""
    model, dropped = np.zeros(simulation.dimension), []
    for number in range(1, rounds + 1):
        alive = [s for s in range(simulation.sites) if not simulation.is_lost(s, number)]
        dropped.append(simulation.sites - len(alive))
        model = np.mean([simulation.wanted(site).astype(float) for site in alive], axis=0)
    return model, dropped


@pytest.mark.parametrize("name", ["threads", pytest.param("dask", marks=pytest.mark.slow)])
async def test_the_secure_sum_is_the_plain_sum(tmp_path, connected, name):
    simulation, rounds = make(tmp_path), 2
    if name == "dask":
        pytest.importorskip("prefect_dask")
    state, opened = await scale_out.run(simulation, rounds, scale_out.task_runner(name, 2))
    assert state.is_completed(), state.message
    model, dropped = expected(simulation, rounds)
    assert np.allclose(model_of(simulation, rounds + 1), model, atol=1e-5)
    assert [o.dropped for o in opened] == dropped
    assert sum(dropped) > 0
    assert [o.survivors + o.dropped for o in opened] == [SITES] * rounds
    assert [r.shard for o in opened for r in o.shards] == [0, 1] * rounds
    run = state.state_details.flow_run_id
    assert await until_recorded(run, 3 * rounds, 30.0)
    async with get_client() as client:
        tasks = await client.read_task_runs()
    mine = [t for t in tasks if t.flow_run_id == run]
    assert sorted({t.name for t in mine}) == sorted(
        [f"sites of shard {shard} · round {n}" for n in (1, 2) for shard in (0, 1)]
        + [f"secure aggregate · round {n}" for n in (1, 2)]
    )
    assert {t.state.name for t in mine} == {"Completed"}


async def test_a_shard_that_dies_ends_the_round_with_its_name(tmp_path, connected, monkeypatch):
    simulation = make(tmp_path)

    def die(*_):
        raise ValueError("a value nobody may see")

    monkeypatch.setattr(sharded, "_play", die)
    state, opened = await scale_out.run(simulation, 2, scale_out.task_runner("threads", 2))
    assert state.name == "Aborted"
    assert "ValueError" in state.message
    assert "nobody may see" not in state.message
    assert opened == []


async def test_a_flow_that_is_stopped_waits_for_nobody(tmp_path, connected, monkeypatch):
    simulation = make(tmp_path, seconds=3600.0)

    def never(simulation, shard, number):
        Post(simulation, number).wait("never")

    monkeypatch.setattr(scale_out, "play_shard", never)
    runner = scale_out.task_runner("threads", 2)
    playing = asyncio.create_task(scale_out.run(simulation, 2, runner))
    order = simulation.folder / "exchange" / "rounds" / "000001" / "order"
    async with asyncio.timeout(60):
        while not order.exists():
            await asyncio.sleep(0.02)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
    with pytest.raises(Aborted, match="stopped"):
        Post(simulation, 1).wait("never")


def together(simulation, number=1):
    """One round on threads, without Prefect; what the coordinator said."""
    shards = [
        threading.Thread(target=quietly, args=(simulation, shard, number), daemon=True)
        for shard in range(simulation.shards)
    ]
    for shard in shards:
        shard.start()
    try:
        return open_sum(simulation, number)
    finally:
        for shard in shards:
            shard.join(60)


def quietly(simulation, shard, number):
    try:
        play_shard(simulation, shard, number)
    except (Aborted, Violation):
        return


def test_a_sum_that_is_not_the_plain_sum_is_found(tmp_path, monkeypatch):
    simulation, put = make(tmp_path, sites=12), Post.put

    def forged(self, name, data):
        if name == "plain/1":
            data = bytes([data[0] ^ 1]) + data[1:]
        put(self, name, data)

    monkeypatch.setattr(Post, "put", forged)
    with pytest.raises(Violation, match="not the plain sum"):
        together(simulation)


def test_a_shard_cannot_speak_for_a_site_of_another(tmp_path, monkeypatch):
    simulation, put = make(tmp_path, sites=12), Post.put

    def forged(self, name, data):
        if name == "up/advert/1":
            members = simulation.members(1)
            messages = unpack(data, members)
            data = pack({0: messages[members[0]]})
        put(self, name, data)

    monkeypatch.setattr(Post, "put", forged)
    with pytest.raises(Violation, match="not its own"):
        together(simulation)


def test_too_many_lost_sites_end_a_round(tmp_path):
    simulation = make(tmp_path, sites=12, lost=0.9)
    assert sum(simulation.is_lost(site, 1) for site in range(12)) > 6
    with pytest.raises(Aborted):
        together(simulation)


def test_a_shard_that_never_answers_is_not_waited_for_for_ever(tmp_path):
    simulation = make(tmp_path, sites=12, seconds=0.3)
    with pytest.raises(Aborted, match=r"up/advert/0 of round 1"):
        open_sum(simulation, 1)
    with pytest.raises(Aborted, match="coordinator: Aborted"):
        play_shard(simulation, 0, 1)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\1", pack({1: []}), pack({1: [b"x"]}) + b"y", pack({1: [b"x"]})[:-1]]
)
def test_bundles_are_read_with_care(data):
    with pytest.raises(Violation):
        unpack(data, [1, 2])


def test_bundles_come_back(tmp_path):
    messages = {1: [b"a", b""], 2: [b"ccc"]}
    assert unpack(pack(messages), [1, 2, 3]) == messages


def test_settings_that_make_no_federation(tmp_path):
    for changes in ({"shards": 61}, {"shards": 0}, {"sites": 20_000}, {"lost": 1.0}):
        with pytest.raises(InputError):
            make(tmp_path, **changes)
    with pytest.raises(Refusal):
        make(tmp_path, sites=2)
    assert not (tmp_path / "simulation").exists()
    simulation = make(tmp_path)
    assert (simulation.folder / "seed").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="already"):
        make(tmp_path)
    with pytest.raises(InputError, match="no simulation"):
        Simulation.open(tmp_path)
    assert Simulation.open(simulation.folder) == simulation
    seed = (simulation.folder / "seed").read_bytes().hex()
    assert seed not in json.dumps((simulation.folder / "simulation.json").read_text())


def test_runners_are_named(monkeypatch):
    with pytest.raises(InputError, match="threads, dask, ray"):
        scale_out.task_runner("slurm", 2)
    monkeypatch.setattr(scale_out.importlib, "import_module", missing)
    with pytest.raises(Refusal, match="prefect-ray is not installed"):
        scale_out.task_runner("ray", 2)


def missing(name):
    raise ImportError(name)
