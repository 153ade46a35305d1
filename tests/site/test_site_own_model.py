"""A job's model for the site's own use: what it checked and kept, and nothing that it sends."""

import dataclasses
import hashlib

import numpy as np
import pytest
from job_room import JOB, Room, drive, make_plan
from typer.testing import CliRunner

from fedflow.cli.site import app
from fedflow.errors import InputError, Refusal
from fedflow.exchange import open_exchange
from fedflow.learning import trivial
from fedflow.learning.model_file import decode_model, encode_model, model_digest
from fedflow.learning.workload import initial_model, model_spec
from fedflow.settings_file import toml_string
from fedflow.site.config import SITE_TEMPLATE, open_site
from fedflow.site.own_model import own_model
from fedflow.site.trainer import perform

PLAN = {
    "plan__workload": "trivial",
    "plan__rounds": 3,
    "training__local_steps": 5,
    "privacy__noise_multiplier": 4.0,
}


class InThisProcess:
    """What a training process does, without one."""

    async def run(self, task, *, workload, data, plan, model=b"", own=b"", **rest):
        request = {"task": task, "workload": workload, "data": str(data), "own": len(own), **rest}
        return perform(request | {"plan": plan.decode()}, model + own)


async def after_job(folder, **changes):
    """The digest a job ended with, and the folders of its sites as a command finds them."""
    mailbox = folder / "mailbox"
    mailbox.mkdir()
    room = Room(
        folder,
        make_plan(**PLAN, **changes),
        exchange=open_exchange(str(mailbox)),
        arrays=initial_model(trivial.workload),
        trainer=lambda site: InThisProcess(),
        epsilon=100.0,
    )
    for label, site in room.sites.items():
        trivial.write_site(site.path / "visits.csv", label)
        settings = {"label": label, "exchange": str(mailbox), "socket": "agent.sock"}
        text = SITE_TEMPLATE.format(**{name: toml_string(v) for name, v in settings.items()})
        (site.path / "site.toml").write_text(text)
        site.identity.save(site.path / "identity.pem")
    room.start()
    runner = await drive(room.runner())
    assert {end.outcome for end in (await room.ends()).values()} == {"completed"}
    await room.stop()
    return runner.model_digest, folder / "sites"


def all_files(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def command(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["model", *map(str, arguments)])


async def test_it_is_the_model_that_the_job_ended_with_whatever_the_exchange_says(tmp_path):
    digest, sites = await after_job(tmp_path)
    for label in ("alpha", "gamma"):
        own = own_model(open_site(sites / label), JOB)
        assert model_digest(encode_model(own.shared)) == digest
        assert own.personal is own.shared
    for path in (tmp_path / "mailbox").rglob("*"):  # the site has its own copy
        if path.is_file() and "manifest" not in path.name:
            path.write_bytes(b"another model")
    assert model_digest(encode_model(own_model(open_site(sites / "alpha"), JOB).shared)) == digest


async def test_a_personalised_model_is_the_sites_own(tmp_path):
    _, sites = await after_job(tmp_path, evaluation__personalised=True)
    alpha, beta = (own_model(open_site(sites / label), JOB) for label in ("alpha", "beta"))
    for name, shared in alpha.shared.items():
        assert np.array_equal(shared, beta.shared[name])
        assert not np.array_equal(alpha.personal[name], shared)
        assert not np.array_equal(alpha.personal[name], beta.personal[name])


async def test_training_further_fits_the_sites_data_and_leaves_no_trace(tmp_path):
    _, sites = await after_job(tmp_path)
    site, before = open_site(sites / "alpha"), all_files(tmp_path)
    own, data = own_model(site, JOB), trivial.workload.load(sites / "alpha" / "visits.csv")
    fitted = dataclasses.replace(data, holdout=data.train)
    scores = [own.score(fitted, own.personal)]
    scores += [own.score(fitted, own.tuned(data, times)) for times in (1, 40)]
    assert scores[0] < scores[2] > 0.9, scores
    assert all_files(tmp_path) == before, "no charge, no message, nothing kept"


async def test_the_command_writes_a_new_private_file_and_says_to_keep_it(tmp_path):
    digest, sites = await after_job(tmp_path)
    plain, tuned = tmp_path / "plain.safetensors", tmp_path / "tuned.safetensors"
    result = command(sites / "alpha", JOB, "-o", plain)
    assert result.exit_code == 0, result.output
    assert "shared model" in result.output
    assert "keep both here" in result.output
    assert model_digest(plain.read_bytes()) == digest
    assert plain.stat().st_mode & 0o777 == 0o600
    result = command(sites / "alpha", JOB, "-o", tuned, "--fine-tune", "2")
    assert "fine-tuned 2 times" in result.output
    spec = model_spec(trivial.workload)
    first, second = (decode_model(path.read_bytes(), spec) for path in (plain, tuned))
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    again = command(sites / "alpha", JOB, "-o", tuned)
    assert isinstance(again.exception, InputError)
    assert "is there already" in str(again.exception)
    assert decode_model(tuned.read_bytes(), spec).keys() == second.keys()


async def test_a_job_the_site_knows_nothing_of_is_refused(tmp_path):
    _, sites = await after_job(tmp_path)
    site = open_site(sites / "alpha")
    with pytest.raises(InputError, match="no job 'spring-9'"):
        own_model(site, "spring-9")
    for path in (sites / "alpha" / "history").iterdir():
        path.unlink()
    with pytest.raises(Refusal, match="knows no round of test-job"):
        own_model(site, JOB)


async def test_a_method_without_a_gradient_is_not_trained_further(tmp_path):
    _, sites = await after_job(tmp_path)
    own = own_model(open_site(sites / "alpha"), JOB)
    strategy = own.plan.strategy.model_copy(update={"name": "kmeans"})
    other = dataclasses.replace(own, plan=own.plan.model_copy(update={"strategy": strategy}))
    with pytest.raises(Refusal, match="no local training in kmeans"):
        other.tuned(trivial.workload.load(sites / "alpha" / "visits.csv"), 1)
