"""Spam or ham at five sites by LoRA on a frozen encoder, privately: how well, and how few bytes.

Every site hosts some mailing lists (:mod:`benchmarks.data.mails`). Each mail is protected, by noise
that is summed, under masks; nobody who is held out wrote a mail that is trained on. The plan is
``flows/plans/mails.toml``. The frozen layers are run once per mail.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.data.mails import Mail, dealt, load_mails
from benchmarks.data.sites import write_mails
from benchmarks.figures import Row, say
from benchmarks.utility.report import Amount
from fedflow.crypto.csprng import Csprng
from fedflow.learning.evaluation import exact_score
from fedflow.learning.plan import Plan, load_plan
from fedflow.learning.workload import PersonData, Persons, units_of
from fedflow.privacy.plan_cost import plan_cost
from fedflow.secagg.vectors import packed_size
from fedflow.simulation.federation import Federation
from fedflow.wire.messages import Kind

PLAN = Path(__file__).parents[2] / "flows" / "plans" / "mails.toml"
QUICK_MAILS, QUICK_RATE = 40, 0.5  # of each site


def mail_rows(amount: Amount) -> Iterator[Row]:
    """Accuracy with LoRA, and the bytes of an upload beside those of the whole encoder."""
    from fedflow.workloads import mails

    plan = load_plan(PLAN)
    if amount.quick:
        raw = plan.model_dump()
        raw["plan"]["rounds"] = 3
        raw["privacy"]["sample_rate"] = QUICK_RATE
        plan = Plan.model_validate(raw)
    sites = _sites(dealt(load_mails()), amount)
    size = f"{sum(len(s.train) + len(s.holdout) for s in sites)} mails at {len(sites)} sites"
    yield _bytes_share(plan, mails.workload.build_model(), size)
    federation = Federation(
        mails.workload, sites, plan, Csprng.from_seed((7).to_bytes(32, "big")), secure=True
    )
    held = Persons.join([site.holdout for site in sites])
    began, score = time.monotonic(), 0.0
    for number in range(1, plan.plan.rounds + 1):
        federation.round()
        if plan.is_evaluated(number):
            score = exact_score(mails.workload, held, federation.model(), plan)
            say(f"mails: {score:.4f} after round {number}, {time.monotonic() - began:.0f} s")
    spent = plan_cost(plan).total.train_epsilon
    yield Row(
        "lora_accuracy",
        "%",
        (100.0 * score,),
        bar=">= 93",
        size=size,
        note=f"epsilon {spent:.1f} per mail at delta {plan.privacy.delta:g}, summed noise, masks;"
        f" {len(held)} held out, by person",
        judged=not amount.quick,
    )


def _sites(mails: dict[str, list[Mail]], amount: Amount) -> list[PersonData]:
    from fedflow.workloads.mails import workload

    if amount.quick:
        mails = {site: some[:: len(some) // QUICK_MAILS] for site, some in mails.items()}
    with tempfile.TemporaryDirectory() as folder:
        loaded = [workload.load(path) for path in write_mails(Path(folder), mails)]
    return [
        PersonData(units_of(site.train, "record"), units_of(site.holdout, "record"))
        for site in loaded
    ]


def _bytes_share(plan: Plan, model: torch.nn.Module, size: str) -> Row:
    """Of one masked upload: the words of a training round, packed as they travel."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # All of the encoder and the head, with no adapter beside them.
    lora = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    whole = sum(p.numel() for p in model.parameters()) - lora
    bits = plan.secure_aggregation.bits
    sent, all_sent = (
        packed_size(plan.vector_length(Kind.TRAIN, count), bits) for count in (trained, whole)
    )
    return Row(
        "lora_bytes_share",
        "%",
        (100.0 * sent / all_sent,),
        bar="<= 2",
        size=size,
        note=f"{sent:,} of {all_sent:,} bytes a round: {trained:,} of {whole:,} parameters",
    )
