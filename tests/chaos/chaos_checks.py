"""What a job left behind, judged from outside, as far as possible by code of its own.

The sum of every transcript is added up again from what the sites wrote down before masking; the
model is computed again from the first one on, over the chain of transcripts; every ledger is read
row by row and held against the objects in the exchange, and its price against dp-accounting itself.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import dp_accounting
import numpy as np
from chaos_world import World
from dp_accounting.rdp import RdpAccountant

from fedflow.coordinator.job import Job
from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError
from fedflow.exchange import Exchange, layout
from fedflow.history import Published, model_file
from fedflow.learning.model_file import decode_model, flatten, spec_of
from fedflow.orders import read_order
from fedflow.privacy.entries import Opened, Reserved, Settled, entry_hash, read_entry
from fedflow.privacy.events import ReleaseEvent
from fedflow.secagg.cohort import verify_cohort
from fedflow.secagg.context import RoundContext
from fedflow.secagg.messages import Masked, Roster
from fedflow.secagg.vectors import chunk_hash
from fedflow.wire.messages import JobEnd, Kind, Order
from fedflow.wire.sealed import unseal

_START = bytes(32)


@dataclass
class Paid:
    """One site's ledger, read row by row."""

    label: str
    accounts: dict[str, Opened] = field(default_factory=dict)
    reserved: dict[bytes, Reserved] = field(default_factory=dict)
    settled: dict[bytes, Settled] = field(default_factory=dict)
    bytes_of: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class Findings:
    """What is wrong, in sentences; and counts of what there was."""

    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def say(self, sentence: str) -> None:
        """Something that must never be."""
        self.wrong.append(sentence)


def read_ledger(world: World, label: str, findings: Findings) -> Paid:
    """Every row of a site's ledger file: its chain, signatures, and no context twice."""
    paid, previous = Paid(label), _START
    key: PublicKey = world.keys[label]
    path = world.site(label) / "ledger.sqlite"
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30) as db:
        rows = db.execute("SELECT seq, signed FROM entries ORDER BY seq").fetchall()
        paid.bytes_of = dict(db.execute("SELECT context, bytes FROM releases").fetchall())
    db.close()
    for seq, signed in rows:
        entry = read_entry(signed, key)  # raises unless the site signed it
        if (entry.seq, entry.previous) != (seq, previous):
            findings.say(f"{label}: ledger entry {seq} does not follow the one before it")
        previous = entry_hash(signed)
        if isinstance(entry, Opened):
            paid.accounts[entry.account] = entry
        elif isinstance(entry, Reserved):
            if entry.context in paid.reserved:
                findings.say(f"{label}: one context was charged twice")
            paid.reserved[entry.context] = entry
            stored = paid.bytes_of.get(entry.context, b"")
            if hashlib.sha256(stored).digest() != entry.release_hash:
                findings.say(f"{label}: entry {seq} does not hold the bytes it paid for")
        elif isinstance(entry, Settled):
            if entry.context in paid.settled or entry.context not in paid.reserved:
                findings.say(f"{label}: entry {seq} settles what was not open")
            paid.settled[entry.context] = entry
    return paid


def check_price(paid: Paid, findings: Findings) -> None:
    """Every price, and the total, against dp-accounting: worst case, or as it was settled."""
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    for name, account in paid.accounts.items():
        events: Counter[tuple[float, float]] = Counter()
        stated = []
        for context, entry in paid.reserved.items():
            if entry.account != name:
                continue
            event, settled = ReleaseEvent.from_canonical(entry.event), paid.settled.get(context)
            stated.append(entry.rho if settled is None else settled.rho)
            noise = event.noise_multiplier
            if settled is not None and event.summed:
                honest = settled.survivors - event.colluders
                noise *= math.sqrt(honest / (event.minimum - event.colluders))
            events[event.sample_rate, noise] += event.steps
        accountant = RdpAccountant([account.order], relation)
        for (rate, noise), steps in events.items():
            one: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise)
            if rate < 1.0:
                one = dp_accounting.PoissonSampledDpEvent(rate, one)
            accountant.compose(dp_accounting.SelfComposedDpEvent(one, steps))
        due = float(accountant.rdp[0]) if events else 0.0
        if not math.isclose(math.fsum(stated), due, rel_tol=1e-9, abs_tol=1e-15):
            findings.say(
                f"{paid.label}, {name}: the ledger says a divergence of {math.fsum(stated):.9g},"
                f" dp-accounting {due:.9g}"
            )
        epsilon = accountant.get_epsilon(account.delta) if events else 0.0
        if epsilon > account.epsilon:
            findings.say(f"{paid.label}, {name}: spent {epsilon:.3f} of {account.epsilon:g}")


def orders_of(exchange: Exchange, job: Job, coordinator: PublicKey) -> dict[int, Order]:
    """Every order the coordinator signed for the job, by number."""
    found = {}
    for sequence in layout.sequences(exchange.list(layout.rounds(job.id))):
        order = read_order(exchange, job.id, job.digest, coordinator, sequence)
        if order is not None:
            found[sequence] = order
    return found


class JobCheck:
    """One job that ended."""

    def __init__(self, world: World, exchange: Exchange, job: Job, findings: Findings) -> None:
        self.world, self.exchange, self.job, self.findings = world, exchange, job, findings
        self.coordinator = world.coordinator_key.public
        self.orders = orders_of(exchange, job, self.coordinator)
        self.contexts: dict[int, bytes] = {}
        self.survivors: dict[int, tuple[int, ...]] = {}
        self.transcripts: dict[int, bytes] = {}  # number of the order, digest
        self.totals: dict[int, np.ndarray] = {}

    def run(self, ledgers: dict[str, Paid]) -> str:
        """Check it all; the job's outcome."""
        for sequence, order in self.orders.items():
            self._read(sequence, order)
        end = self._end()
        self._check_model(end)
        for label, paid in ledgers.items():
            self._check_releases(label, paid)
        self.findings.counts["orders"] += len(self.orders)
        self.findings.counts["sums"] += len(self.transcripts)
        return "none" if end is None else end.outcome

    def _say(self, sentence: str) -> None:
        self.findings.say(f"{self.job.id}: {sentence}")

    def _read(self, sequence: int, order: Order) -> None:
        """The order's cohort and transcript; its sum against what the sites had before masking."""
        data = self.exchange.get(layout.down(self.job.id, sequence, "roster"), 1 << 22)
        if data is not None:
            plan = self.job.plan
            cohort = verify_cohort(
                Roster.decode(data).adverts,
                round_ctx=RoundContext.of(order).digest(),
                roster=self.job.roster,
                colluders=plan.cohort.colluders,
                minimum=plan.cohort.minimum,
                suite_number=plan.suite,
            )
            self.contexts[sequence] = cohort.context
        if self.exchange.get(layout.transcript(self.job.id, sequence), 1 << 22) is None:
            self.findings.counts["orders without a sum"] += 1
            return
        published = Published(self.exchange, self.job, order)
        try:
            transcript = published.transcript(self.coordinator)
            published.verify(transcript)
            total = published.total(transcript)
        except FedflowError as error:
            self._say(f"the transcript of order {sequence} does not hold: {error}")
            return
        self.transcripts[sequence] = transcript.digest()
        self.survivors[sequence] = tuple(transcript.survivors)
        self.totals[sequence] = total
        lost = len(transcript.dealings) - len(transcript.survivors)
        self.findings.counts["lost sites whose masks were recovered"] += lost
        expected = np.zeros(order.dimension, np.uint32)
        for site in transcript.survivors:
            path = self.world.witness(self.job.labels[site]) / self.contexts[sequence].hex()
            if not path.exists():
                self._say(f"order {sequence}: nobody saw what site {site} masked")
                return
            expected += np.frombuffer(path.read_bytes(), "<u4")
        bits = self.job.plan.bits(Kind(order.kind))
        if bits < 32:
            expected &= np.uint32((1 << bits) - 1)
        if not np.array_equal(expected, total):
            self._say(f"the sum of order {sequence} is not that of its survivors' vectors")

    def _end(self) -> JobEnd | None:
        data = self.exchange.get(layout.end(self.job.id), layout.MAX_SEALED_BYTES)
        if data is None:
            self._say("it has no end")
            return None
        return unseal(JobEnd, data, self.coordinator)

    def _chain(self) -> list[int]:
        """The orders whose sums made the model, first to last: each names the one before it."""
        by_digest = {digest: sequence for sequence, digest in self.transcripts.items()}
        at, chain = max(self.transcripts, default=0), []
        while at:
            chain.append(at)
            previous = self.orders[at].previous
            if previous != _START and previous not in by_digest:
                self._say(f"order {at} builds on a transcript that is not there")
                break
            at = by_digest.get(previous, 0)
        return chain[::-1]

    def _check_model(self, end: JobEnd | None) -> None:
        """The model, once more: the first one and every sum of the chain, in float64."""
        chain, manifest, plan = self._chain(), self.job.manifest, self.job.plan
        if lost := sorted(set(self.transcripts) - set(chain)):
            # A sum that was opened and not used: what it told is paid for, but for nothing.
            self._say(f"opened sums that are not in the model's history: orders {lost}")
        first = self._blob(manifest.initial_model)
        spec, digest = spec_of(first), manifest.initial_model
        vector = flatten(decode_model(first, spec))
        rounds = []
        for sequence in chain:
            order, total = self.orders[sequence], self.totals[sequence]
            if order.model != digest:
                self._say(f"order {sequence} is for a model that its history does not make")
            if Kind(order.kind) is not Kind.TRAIN:
                continue
            rounds.append(order.round)
            grid = plan.coding(len(manifest.roster), order.value_range)
            signed = total[:-1].astype(np.int64)
            signed[signed >= 1 << 31] -= 1 << 32
            mean = signed / grid.values.scale / len(self.survivors[sequence])
            step = np.float64(plan.strategy.server_learning_rate) * mean
            vector = (vector.astype(np.float64) + step).astype(np.float32)
            digest = self._made(vector, spec, sequence)
        outcome = "" if end is None else end.outcome
        if rounds != list(range(1, len(rounds) + 1)):
            self._say(f"the model is of rounds {rounds}")
        if outcome == "completed" and len(rounds) != plan.plan.rounds:
            self._say(f"it completed after {len(rounds)} of {plan.plan.rounds} rounds")
        if end is not None and end.model != digest:
            self._say("the final model is not the one its sums make")
        self.findings.counts["rounds"] += len(rounds)

    def _made(self, vector: np.ndarray, spec: object, sequence: int) -> bytes:
        data = model_file(vector, spec)
        digest = hashlib.sha256(data).digest()
        if self.exchange.get(layout.blob(self.job.id, digest)) != data:
            self._say(f"the model after order {sequence} was not published")
        return digest

    def _blob(self, digest: bytes) -> bytes:
        data = self.exchange.get(layout.blob(self.job.id, digest)) or b""
        if hashlib.sha256(data).digest() != digest:
            self._say("the first model is not the one in the manifest")
        return data

    def _check_releases(self, label: str, paid: Paid) -> None:
        """What left the site against its ledger, both ways."""
        site = self.job.index(label)
        mine = {c: e for c, e in paid.reserved.items() if e.manifest == self.job.digest}
        known = {context: sequence for sequence, context in self.contexts.items()}
        for context, entry in mine.items():
            sequence = known.get(context)
            order = self.orders.get(sequence or 0)
            if order is None:
                self._say(f"{label} paid for a cohort that no order has")
                continue
            said = (entry.round, entry.attempt, entry.purpose)
            if said != (order.round, order.attempt, Kind(order.kind).word):
                self._say(f"{label} paid for {said} in order {sequence}")
        for sequence in self.orders:
            header = self.exchange.get(layout.up(self.job.id, sequence, "masked", site), 1 << 22)
            folder = f"{layout.vectors(self.job.id, sequence)}/{site}"
            chunks = {
                int(name): chunk_hash(self.exchange.get(f"{folder}/{name}") or b"")
                for name in self.exchange.list(folder)
            }
            if header is None and not chunks:
                continue
            self.findings.counts["releases"] += 1
            context = self.contexts.get(sequence)
            entry = None if context is None else mine.get(context)
            if context is None or entry is None:
                self._say(f"{label} released in order {sequence} what its ledger never paid for")
                continue
            stored = paid.bytes_of[context]
            if header is not None and header != stored:
                self._say(f"{label} sent other bytes in order {sequence} than it paid for")
            named = Masked.decode(stored).chunks
            if any(index >= len(named) or named[index] != h for index, h in chunks.items()):
                self._say(f"{label} sent a chunk in order {sequence} that it did not pay for")
            if header is not None and len(chunks) != len(named):
                self._say(f"{label} sent its header in order {sequence} before its chunks")
            self._check_settled(label, site, sequence, paid.settled.get(context))
        witness = self.world.witness(label)
        if witness.is_dir() and any(p.name.endswith(".again") for p in witness.iterdir()):
            self._say(f"{label} masked two vectors for one cohort")
        self.findings.counts["charges"] += len(mine)

    def _check_settled(self, label: str, site: int, sequence: int, settled: Settled | None) -> None:
        if settled is None or sequence not in self.survivors:
            return
        if settled.survivors != len(self.survivors[sequence]):
            self._say(f"{label} settled order {sequence} at {settled.survivors} sites")
        if site not in self.survivors[sequence]:
            self._say(f"{label} settled order {sequence}, which it is not part of")


def private_words(world: World) -> list[bytes]:
    """What no server may hold: rows' ids, and where a site keeps its things."""
    words = [str(world.folder / "sites").encode(), b"ledger.sqlite", b"identity.pem"]
    for label in world.labels:
        rows = (world.site(label) / "trivial.csv").read_bytes().splitlines()[1:]
        for row in rows[:: max(1, len(rows) // 20)]:
            words += [row.split(b",")[0] + b",", b",".join(row.split(b",")[1:4])]
    return words


def scan_for(words: list[bytes], files: list[Path], findings: Findings) -> None:
    """No file of a server holds any of ``words``."""
    for path in files:
        data = path.read_bytes()
        for word in words:
            if word in data:
                findings.say(f"{path.name} of the server holds {word.decode()!r}")
