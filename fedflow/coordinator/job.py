"""Making a job: the plan, the roster and the first model become one signed manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError, Misuse, Refusal, Violation
from fedflow.exchange import Exchange, layout
from fedflow.learning.groups import check_groups
from fedflow.learning.model_file import ModelSpec, model_digest
from fedflow.learning.plan import Plan
from fedflow.learning.server_state import model_spec_of
from fedflow.learning.summed_noise import share_stddev, unit_sensitivity
from fedflow.learning.value_range import initial_range
from fedflow.secagg.params import Thresholds
from fedflow.wire.membership import FederationRoster
from fedflow.wire.messages import JOB_ID, Kind, Manifest, RosterEntry
from fedflow.wire.sealed import seal, unseal


def create_job(
    exchange: Exchange,
    *,
    job: str,
    plan: Plan,
    sites: Mapping[str, PublicKey],
    coordinator: PublicKey,
    authority: Identity,
    initial_model: bytes,
    spec: ModelSpec,
    reference_persons: int | None = None,
    valid_seconds: int = 86_400,
) -> Manifest:
    """Publish a job's manifest and first model; returns the manifest.

    As :func:`sign_job`, whose Refusals it has, then :func:`publish_job`.
    """
    sealed = sign_job(
        job=job,
        plan=plan,
        sites=sites,
        coordinator=coordinator,
        authority=authority,
        initial_model=initial_model,
        spec=spec,
        reference_persons=reference_persons,
        valid_seconds=valid_seconds,
    )
    return publish_job(exchange, sealed, initial_model, authority.public)


def sign_job(
    *,
    job: str,
    plan: Plan,
    sites: Mapping[str, PublicKey],
    coordinator: PublicKey,
    authority: Identity,
    initial_model: bytes,
    spec: ModelSpec,
    reference_persons: int | None = None,
    valid_seconds: int = 86_400,
) -> bytes:
    """The sealed manifest of a job.

    ``initial_model`` is the file of :func:`~fedflow.learning.server_state.initial_state`, ``spec``
    its spec. ``sites`` maps labels to keys; indices follow the sorted labels, from 0.
    ``reference_persons`` is the workload's, from which a plan with ``value_range = "auto"`` has its
    first range. Raises Refusal when the cohort cannot meet the plan's thresholds or its sums do not
    fit the plan's bits.
    """
    if not JOB_ID.fullmatch(job):
        raise InputError(
            f"{job!r} cannot be a job id", field="job", allowed="lower-case letters, digits, dashes"
        )
    if len(sites) < plan.cohort.minimum:
        raise Refusal(
            "too-few-sites",
            f"the roster has {len(sites)} sites, the plan's minimum is {plan.cohort.minimum}",
        )
    check_groups(plan, len(sites))
    Thresholds.for_cohort(len(sites), plan.cohort.colluders, plan.cohort.minimum)
    needed = plan.secure_aggregation.value_range == "auto" or plan.privacy.mechanism == "summed"
    if needed and reference_persons is None:
        raise Misuse("this plan needs the workload's reference number of persons")
    value_range = initial_range(plan, reference_persons or 1)
    coding, dimension = plan.coding(len(sites), value_range), model_spec_of(spec, plan).dimension
    if plan.privacy.mechanism != "local":
        noised = plan.vector_length(Kind.TRAIN, dimension) - 1
        norm = plan.privacy.clipping_norm
        share_stddev(plan, coding, noised, unit_sensitivity(plan, norm, reference_persons or 1))
    digest = model_digest(initial_model)
    now = int(time.time())
    manifest = Manifest(
        job=job,
        coordinator=coordinator.raw,
        roster=tuple(
            RosterEntry(index, sites[label].raw, label) for index, label in enumerate(sorted(sites))
        ),
        colluders=plan.cohort.colluders,
        minimum=plan.cohort.minimum,
        dimension=dimension,
        model_spec=spec.digest(),
        initial_model=digest,
        value_range=value_range,
        plan=plan.canonical(),
        created=now,
        not_after=now + valid_seconds,
    )
    return seal(authority, manifest)


def publish_job(
    exchange: Exchange, sealed: bytes, initial_model: bytes, authority: PublicKey
) -> Manifest:
    """Put a job's first model and its manifest into the exchange; returns the manifest.

    Doing it again with the same bytes changes nothing. Violation for bytes the authority did not
    sign or another model; Refusal ``job-taken`` when the exchange has another job of that id.
    """
    manifest = unseal(Manifest, sealed, authority)
    if model_digest(initial_model) != manifest.initial_model:
        raise Violation("wrong-model", "this is not the first model that the manifest names")
    try:
        exchange.put(layout.blob(manifest.job, manifest.initial_model), initial_model)
        exchange.put(layout.manifest(manifest.job), sealed)
    except Violation as error:
        if error.code != "already-put":
            raise
        raise Refusal(
            "job-taken",
            f"the exchange has a job {manifest.job} already, and a job never changes: another plan,"
            " other sites or another day is a new manifest, hence a new job. Choose another id",
        ) from None
    return manifest


@dataclass(frozen=True)
class Job:
    """A verified manifest, opened."""

    manifest: Manifest
    digest: bytes
    plan: Plan
    roster: dict[int, PublicKey]
    labels: dict[int, str]

    @property
    def id(self) -> str:
        """The job id."""
        return self.manifest.job

    def index(self, label: str) -> int:
        """The roster index of the site with this label; KeyError when there is none."""
        return {name: index for index, name in self.labels.items()}[label]


def load_job(exchange: Exchange, job: str, authority: PublicKey) -> Job:
    """The job's manifest as the authority signed it; InputError when there is none."""
    data = exchange.get(layout.manifest(job), layout.MAX_MANIFEST_BYTES)
    if data is None:
        raise InputError(f"there is no job {job!r} in the exchange", field="job")
    manifest = unseal(Manifest, data, authority)
    if manifest.job != job:
        raise Violation("manifest-mismatch", "the manifest in the exchange is of another job")
    return opened(manifest)


def opened(manifest: Manifest) -> Job:
    """A verified manifest, opened."""
    return Job(
        manifest=manifest,
        digest=manifest.digest(),
        plan=Plan.from_canonical(manifest.plan),
        roster={e.index: PublicKey(e.public_key) for e in manifest.roster},
        labels={e.index: e.label for e in manifest.roster},
    )


def write_roster(
    path: Path, job: Job, authority: PublicKey, members: FederationRoster | None = None
) -> None:
    """The keys an auditor pins, as JSON: authority, coordinator and sites.

    With ``members`` also the keys that sites had before, whose ledgers go on.
    """
    sites: list[dict[str, Any]] = []
    for e in job.manifest.roster:
        site = {"index": e.index, "label": e.label, "public_key": e.public_key.hex()}
        earlier = members.earlier_keys(e.public_key) if members else ()
        sites.append(site | ({"earlier_keys": [k.hex() for k in earlier]} if earlier else {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "authority": authority.hex(),
                "coordinator": job.manifest.coordinator.hex(),
                "sites": sites,
            },
            indent=2,
        )
    )
