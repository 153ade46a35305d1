"""Blocks: Prefect's own conventions, registration, and that a site has nothing to do with them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

import fedflow.orchestration
from fedflow.coordinator.settings import init_coordinator
from fedflow.crypto.identity import Identity
from fedflow.errors import Refusal
from fedflow.orchestration import (
    FedflowCoordinator,
    FedflowExchange,
    FedflowFederation,
    FedflowSite,
)

BLOCKS = [FedflowCoordinator, FedflowExchange, FedflowFederation, FedflowSite]


@pytest.mark.parametrize("block", BLOCKS)
class TestConventions(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block):
        return block

    # needs a picture from the network
    test_has_a_valid_image = None


def test_a_site_process_loads_no_block():
    code = (
        "import sys, fedflow.orchestration, fedflow.orchestration.worker, fedflow.site.agent;"
        "sys.exit('fedflow.orchestration.blocks' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_stays_light_and_names_its_blocks():
    code = "import sys, fedflow.orchestration; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {b.__name__ for b in BLOCKS} <= set(dir(fedflow.orchestration))
    with pytest.raises(AttributeError):
        fedflow.orchestration.NoSuchBlock  # noqa: B018


@pytest.mark.slow
async def test_registering_the_module_registers_every_block_and_they_come_back(connected):
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "fedflow.orchestration"]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={**os.environ, **connected.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for block in BLOCKS:
        assert block._block_type_name in done.stdout.replace("\n", " ")
    key = Identity.generate().public
    federation = FedflowFederation(name="north", authority=key.hex(), exchange="s3://north")
    await federation.asave("north")
    assert (await FedflowFederation.aload("north")).fingerprint() == key.fingerprint()
    site = FedflowSite(label="berlin", public_key=key.hex())
    await site.asave("berlin")
    assert (await FedflowSite.aload("berlin")).work_pool == "berlin"


@pytest.mark.parametrize("bad", ["", "ab", "AB" * 32, "zz" * 32, "../key"])
def test_what_is_no_key_is_no_block(bad):
    with pytest.raises(ValidationError):
        FedflowFederation(name="north", authority=bad, exchange="./x")
    with pytest.raises(ValidationError):
        FedflowSite(label="berlin", public_key=bad)


def test_a_block_that_lies_about_the_authority_opens_nothing(tmp_path):
    mine, other = Identity.generate().public, Identity.generate().public
    init_coordinator(tmp_path / "c", exchange=str(tmp_path), authority=mine)
    block = FedflowFederation(name="north", authority=mine.hex(), exchange="./x")
    assert FedflowCoordinator(folder=tmp_path / "c", federation=block).open().authority == mine
    lie = FedflowFederation(name="north", authority=other.hex(), exchange="./x")
    with pytest.raises(Refusal, match="another authority"):
        FedflowCoordinator(folder=tmp_path / "c", federation=lie).open()


def test_secrets_are_not_shown():
    block = FedflowExchange(
        url="s3://b", access_key_id="AKIA-shown-nowhere", secret_access_key="hidden-word"
    )
    assert "hidden-word" not in repr(block) + str(block.model_dump_json())
    assert block.environment()["AWS_SECRET_ACCESS_KEY"] == "hidden-word"
    assert "AWS_ENDPOINT_URL" not in block.environment()
