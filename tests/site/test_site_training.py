"""The real training process: a small job on real rows, bad data files, a process that dies."""

import asyncio
import os

import numpy as np
import pytest
from job_room import JOB, Room, drive, make_plan
from plans import AUTO, SITE, SUMMED
from safetensors.numpy import load

from fedflow.errors import Refusal
from fedflow.exchange import layout, open_exchange
from fedflow.learning.model_file import decode_model, flatten
from fedflow.learning.randhie import partition_sites, vendored_table, workload
from fedflow.learning.server_state import parameters
from fedflow.learning.workload import initial_model
from fedflow.site.training_client import TrainingClient, TrainingFailed

PLAIN = {
    "plan__rounds": 1,
    "evaluation__noise_multiplier": 2.0,
    "deadlines__round_seconds": 90.0,
    "deadlines__leg_seconds": 60.0,
}
PLAN = make_plan(**PLAIN)
ROWS = {n: rows.decode().splitlines() for n, rows in partition_sites(vendored_table()).items()}
HEAD = ROWS["1"][0]


def write(path, lines):
    (path / "visits.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
async def trainer(tmp_path):
    client = TrainingClient(tmp_path / "trainer.log")
    yield client
    await client.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "kind", "memory"),
    [
        ({}, "poisson-gaussian", set()),
        (
            {**SUMMED, "strategy__server_optimizer": "adam", "privacy__unit": "record"},
            "poisson-summed-gaussian",
            {"~momentum", "~second_moment", "~steps"},
        ),
        (
            {
                **SITE,
                **AUTO,
                "privacy__clipping_quantile": 0.5,
                "strategy__server_momentum": 0.5,
            },
            "summed-gaussian",
            {"~clipping_norm", "~momentum"},
        ),
        ({"strategy__name": "scaffold"}, "poisson-gaussian", {"~control"}),
        ({"evaluation__personalised": True}, "poisson-gaussian", set()),
    ],
    ids=["local", "summed", "site", "scaffold", "personalised"],
)
async def test_three_sites_train_on_real_rows(tmp_path, caplog, changes, kind, memory):
    clients = []
    plan = make_plan(**{**PLAIN, **changes})

    def real(site):
        clients.append(TrainingClient(site.path / "agent.log"))
        return clients[-1]

    room = Room(
        tmp_path,
        plan,
        labels=("a", "b", "c"),
        exchange=open_exchange(str(tmp_path / "exchange")),
        arrays=initial_model(workload),
        trainer=real,
    )
    for number, site in enumerate(room.sites.values(), 1):
        write(site.path, ROWS[str(number)][:400])
    room.start()
    runner = await drive(room.runner(), join_seconds=90)
    ends = await room.ends()
    assert {end.outcome for end in ends.values()} == {"completed"}
    record = runner.records[0]
    assert record.sites == ["a", "b", "c"]
    assert 0.0 <= record.score <= 1.0
    model = room.exchange.get(layout.blob(JOB, runner.model_digest))
    arrays = decode_model(model, room.spec)
    assert abs(flatten(parameters(arrays))).max() > 0
    assert {name for name in arrays if name.startswith("~")} == memory
    for site in room.sites.values():
        train, score = (entry.release_event for entry in site.charges())
        assert (train.kind, score.kind) == (kind, "summed-gaussian")
        assert train.unit == score.unit == plan.privacy.unit
        accounts = {entry.account for entry in site.charges()}
        one = {"visits/all"}  # a site is in both halves of its data
        assert accounts == (one if train.unit == "site" else {"visits/train", "visits/evaluate"})
        settled = [entry for entry in site.ledger.entries() if entry.kind == "settle"]
        assert [entry.survivors for entry in settled] == [3, 3]
        # Only a strategy that needs it keeps something at the site, and for no other's eyes.
        own = site.path / "kept" / f"{JOB}.safetensors"
        wanted = memory & {"~control"}
        wanted |= {"~personal"} if plan.evaluation.personalised else set()
        assert own.exists() == bool(wanted)
        if own.exists():
            assert own.stat().st_mode & 0o077 == 0
            tensors = load(own.read_bytes())
            assert set(tensors) == wanted
            assert all(abs(tensor).max() > 0 for tensor in tensors.values())
    assert (record.personalised is not None) == plan.evaluation.personalised
    assert ("personalised" in record.verdict) == plan.evaluation.personalised
    for client in clients:
        await client.close()
    await room.stop()


BAD_FILES = {
    "missing column": ([HEAD.replace("xage", "agex"), *ROWS["1"][1:50]], "xage"),
    "text in a number": (
        [HEAD, *(r.replace(r.split(",")[HEAD.split(",").index("xage")], "forty-two", 1)
                 if i == 7 else r for i, r in enumerate(ROWS["1"][1:50]))],
        "forty-two",
    ),
    "all one class": (
        [HEAD, *(r for r in ROWS["1"][1:400] if r.split(",")[HEAD.split(",").index("any_visit")]
                 in ("1", "1.0"))],
        "every row has label",
    ),
    "no rows": ([HEAD], "no rows"),
    "empty": ([""], "empty"),
}  # fmt: skip


@pytest.mark.slow
async def test_a_bad_data_file_is_told_to_the_operator_and_to_nobody_else(
    tmp_path, trainer, caplog
):
    room = Room(tmp_path, PLAN, arrays=initial_model(workload), labels=("a", "b", "c"))
    site = room.sites["a"]
    site.trainer = trainer
    for what, (lines, cause) in BAD_FILES.items():
        write(site.path, lines)
        caplog.clear()
        with caplog.at_level("INFO", logger="fedflow"):
            end = await asyncio.wait_for(site.start(), 60)
        assert (end.outcome, end.code) == ("refused", "bad-input"), what
        assert cause in caplog.text, what
        assert "visits.csv" in caplog.text
        for private in (cause, "visits.csv", "xage", "forty"):
            assert private not in end.reason, what
    (site.path / "visits.csv").unlink()
    end = await asyncio.wait_for(site.start(), 60)
    assert end.code == "bad-input"
    assert room.exchange.list(layout.hellos(JOB)) == []
    await room.stop()


@pytest.mark.slow
async def test_the_training_process_survives_its_requests(tmp_path, trainer):
    write(tmp_path, ROWS["1"][:200])
    request = {
        "workload": "randhie",
        "data": tmp_path / "visits.csv",
        "plan": PLAN.canonical(),
    }
    await trainer.start()
    with pytest.raises(TrainingFailed) as caught:  # a model file cut short
        await trainer.run("train", **request, model=b"\x08\0\0\0\0\0\0\0{}")
    assert caught.value.code not in ("internal", "training-died")
    with pytest.raises(TrainingFailed):
        await trainer.run("no-such-task", **request, model=b"")
    with pytest.raises(Refusal) as refused:
        await trainer.run("check", **(request | {"workload": "missing"}))
    assert refused.value.code == "unknown-workload"
    assert (await trainer.run("check", **request)).vector.size == 0
    # Cancelling ends the process and what it holds.
    running = asyncio.create_task(trainer.run("check", **request))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    pid = trainer._process.pid
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert trainer._process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
async def test_a_large_model_and_a_large_answer_cross_the_pipe_unchanged(tmp_path, monkeypatch):
    """An echo in place of training: the frames are those of the real process."""
    script = tmp_path / "echo.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from fedflow.site.trainer import read_frame, write_frame\n"
        "out = sys.stdout.buffer\n"
        "write_frame(out, {'ok': True, 'ready': True})\n"
        "while frame := read_frame(sys.stdin.buffer):\n"
        "    vector = np.frombuffer(frame[1], np.float32) * 2\n"
        "    header = {'ok': True, 'dtype': 'float32', 'own': 3}\n"
        "    write_frame(out, header, vector.view(np.uint8).data, b'own')\n"
    )
    real = asyncio.create_subprocess_exec

    async def start(python, *_, **kwargs):
        return await real(python, str(script), **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    client = TrainingClient(tmp_path / "log")
    for size in (0, 1, 3_000_001):
        model = np.arange(size, dtype=np.float32)
        got, own = await client.run(
            "train", workload="x", data=tmp_path, plan=b"{}", model=model.tobytes()
        )
        assert (got.dtype, own) == (np.float32, b"own")
        np.testing.assert_array_equal(got, model * 2)
    await client.close()


def test_the_training_process_sees_no_credential(monkeypatch, tmp_path):
    from fedflow.site import training_client

    assert not any("KEY" in n or "PREFECT" in n for n in training_client._ENVIRONMENT)
