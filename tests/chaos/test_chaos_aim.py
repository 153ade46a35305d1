"""The driver recognises every moment it aims at: one that never comes would be aimed at in vain."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos_aim import MOMENTS, WEIGHTS, Aim, moment_of
from chaos_inotify import Seen, Watch
from chaos_world import World, chaos_plan

ROUND = "exchange/jobs/chaos-0001/rounds/000003"
PATHS = {
    **{f"{ROUND}/up/{leg}/1": (f"up {leg}", "site-2") for leg in ("advert", "shares", "masked")},
    **{f"{ROUND}/up/{leg}/0": (f"up {leg}", "site-1") for leg in ("signed", "unmask")},
    f"{ROUND}/up/vector/2/0": ("up vector", "site-3"),
    f"{ROUND}/up/vector/2/.0.aa": ("writing up vector", "site-3"),
    f"{ROUND}/up/masked/.2.aa": ("writing up masked", "site-3"),
    f"{ROUND}/down/roster/all": ("down roster", "coordinator"),
    f"{ROUND}/down/delivery/1": ("down delivery", "coordinator"),
    f"{ROUND}/down/survivors/all": ("down survivors", "coordinator"),
    f"{ROUND}/down/consistency/all": ("down consistency", "coordinator"),
    f"{ROUND}/order": ("order", "coordinator"),
    f"{ROUND}/.order.aa": ("writing order", "coordinator"),
    f"{ROUND}/sum/0": ("sum", "coordinator"),
    f"{ROUND}/sum/.0.aa": ("writing sum", "coordinator"),
    f"{ROUND}/transcript": ("transcript", "coordinator"),
    f"{ROUND}/.transcript.aa": ("writing transcript", "coordinator"),
    "exchange/jobs/chaos-0001/blobs/00ff": ("blobs", "coordinator"),
    "exchange/jobs/chaos-0001/blobs/.00ff.aa": ("writing blobs", "coordinator"),
    "exchange/jobs/chaos-0001/end": ("end", "coordinator"),
    "exchange/jobs/chaos-0001/.end.aa": ("writing end", "coordinator"),
    "exchange/jobs/chaos-0001/hello/2-00ff": ("hello", "site-3"),
    "exchange/jobs/chaos-0001/countersign/0": ("countersign", "site-1"),
    "sites/site-1/ledger.sqlite-journal": ("ledger begun", "site-1"),
    "-sites/site-1/ledger.sqlite-journal": ("ledger committed", "site-1"),
    "sites/site-1/anchors.sqlite-journal": ("anchors begun", "site-1"),
    "-sites/site-1/anchors.sqlite-journal": ("anchors committed", "site-1"),
    "sites/site-2/spool/00ff/0": ("spool", "site-2"),
    "-sites/site-2/spool/00ff": ("spool removed", "site-2"),
    "sites/site-2/history/chaos-0001.json": ("history", "site-2"),
    "coordinator/jobs/chaos-0001/checkpoint.tmp": ("checkpoint begun", "coordinator"),
    "coordinator/jobs/chaos-0001/checkpoint.json": ("checkpoint", "coordinator"),
}


@pytest.fixture
def world(tmp_path):
    made = World.make(tmp_path / "world", chaos_plan(3, 3.0), 3)
    yield made
    made.close(keep=True)


def test_every_moment_is_recognised_and_its_owner(world):
    for path, (what, owner) in PATHS.items():
        seen = Seen(f"{world.folder}/{path.removeprefix('-')}", path.startswith("-"))
        moment = moment_of(seen, world)
        assert moment is not None, path
        assert (moment.what, moment.owner) == (what, owner), path
    assert {what for what, _ in PATHS.values()} | {"started"} == set(MOMENTS)


def test_the_kernel_tells_of_files_in_folders_made_later(tmp_path):
    watch = Watch()
    watch.add(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    watch.wait(5.0)
    (tmp_path / "a" / "b" / "new").touch()
    (tmp_path / "a" / "b" / "new").rename(tmp_path / "a" / "b" / "name")
    found = []
    while not any(seen.path.endswith("/name") for seen in found):
        more = watch.wait(5.0)
        assert more, found
        found += more
    watch.close()


def test_a_seed_gives_the_same_shots():
    seed = random.Random(1).getrandbits(64)
    one, other = (Aim(seed, list(WEIGHTS), 1.0) for _ in range(2))
    shots = [one.shot(0.0) for _ in range(300)]
    assert shots == [other.shot(0.0) for _ in range(300)]
    assert {kind for shot in shots for kind in shot.kinds} == set(WEIGHTS)
    assert {shot.what for shot in shots} >= {"ledger committed", "transcript", "started"}
