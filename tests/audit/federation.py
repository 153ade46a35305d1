"""A whole job in one process, made with the real code, for auditors to look at and to tamper with.

Four sites, tiny models, invented updates: only training and Prefect are left out.
"""

import shutil
import time
from pathlib import Path

import numpy as np
import plans

from fedflow.coordinator.job import create_job, load_job, write_roster
from fedflow.crypto.csprng import Csprng
from fedflow.crypto.identity import Identity
from fedflow.exchange import frame, layout, open_exchange, unframe
from fedflow.history import Rules, State, advance, first_state, model_file
from fedflow.learning.model_file import ModelSpec, encode_model, flatten
from fedflow.learning.server_state import initial_state
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.plan_cost import evaluation_event, training_event
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.secagg.quantise import encode_integers
from fedflow.secagg.server import SecAggServer
from fedflow.secagg.vectors import CHUNK_WORDS, pack
from fedflow.wire.messages import Countersignature, JobEnd, Kind, Order
from fedflow.wire.sealed import seal

JOB = "test-job"
LABELS = ["north", "east", "south", "west"]


def make_plan(rounds=4, **changes):
    return plans.make_plan(**{**plans.SMALL, "plan__rounds": rounds, **changes})


class Federation:
    """Runs rounds into ``folder``; keeps every key, so that tests can also cheat knowingly."""

    def __init__(self, folder: Path, labels=LABELS, job=JOB, like=None, **changes):
        """``like``: another federation, whose parties' keys this one has too."""
        self.folder, self.job_id = folder, job
        self.authority = like.authority if like else Identity.generate()
        self.coordinator = like.coordinator if like else Identity.generate()
        self.sites = like.sites if like else {label: Identity.generate() for label in labels}
        self.exchange = open_exchange(str(folder / "exchange"))
        arrays = {"b": np.zeros(2, np.float32), "w": np.full((2, 3), 0.5, np.float32)}
        arrays = initial_state(arrays, make_plan(**changes))
        self.spec, self.vector = ModelSpec.of(arrays), flatten(arrays)
        data = encode_model(arrays)
        create_job(
            self.exchange,
            job=job,
            plan=make_plan(**changes),
            reference_persons=100,
            sites={label: i.public for label, i in self.sites.items()},
            coordinator=self.coordinator.public,
            authority=self.authority,
            initial_model=data,
            spec=self.spec,
        )
        self.job = load_job(self.exchange, job, self.authority.public)
        write_roster(folder / "audit" / "roster.json", self.job, self.authority.public)
        self.identities = {i: self.sites[label] for i, label in self.job.labels.items()}
        self.ledgers = {}
        for index, identity in self.identities.items():
            home = folder / "sites" / self.job.labels[index]
            home.mkdir(parents=True)
            ledger = Ledger.create(home / "ledger.sqlite", identity, self.job.labels[index])
            ledger.open_account("demo/train", epsilon=3.0, delta=1e-5, order=12.0)
            ledger.open_account("demo/holdout", epsilon=3.0, delta=1e-5, order=12.0)
            self.ledgers[index] = ledger
            bound = seal(identity, Countersignature(self.job.digest, index))
            self.exchange.put(layout.countersign(job, index), bound)
        self.rules = Rules(self.job.manifest, self.job.plan, self.spec)
        self.state, self.sequence = first_state(self.job.manifest), 0

    def order(self, number, kind=Kind.TRAIN, attempt=1, **changes):
        """The next order, published."""
        self.sequence += 1
        fields = {
            "manifest": self.job.digest,
            "sequence": self.sequence,
            "round": number,
            "attempt": attempt,
            "kind": int(kind),
            "model": self.state.model,
            "previous": self.state.head,
            "value_range": self.state.value_range,
            "dimension": self.job.plan.vector_length(kind, self.job.manifest.dimension),
            "deadline": int(time.time() * 1000) + 60_000,
        }
        order = Order(**(fields | changes))
        self.exchange.put(layout.order(self.job_id, self.sequence), seal(self.coordinator, order))
        return order

    def context(self, order):
        return RoundContext(
            manifest_hash=self.job.digest,
            order_hash=order.digest(),
            round=order.round,
            attempt=order.attempt,
            kind=order.kind,
            model_hash=order.model,
            previous_transcript=order.previous,
        ).digest()

    def run(
        self, number, kind=Kind.TRAIN, attempt=1, *, drop=(), silent=(), abort=False, charge=True,
        settle=True, settled_by=None, event=None, account=None, survivors=None, publish_model=True,
        follow=True, stated=None, **changes,
    ):  # fmt: skip
        """One order to its sum. ``drop``: charged but never sent. ``silent``: sent, then vanished.

        ``abort`` ends it after the masked vectors; ``charge`` may be a set of sites that do charge;
        ``stated`` are positions of ledgers that are not where they are.
        """
        order = self.order(number, kind, attempt, **changes)
        common = {
            "round_ctx": self.context(order),
            "roster": self.job.roster,
            "colluders": 0,
            "minimum": 3,
            "dimension": order.dimension,
            "suite_number": self.job.plan.suite,
            "bits": self.job.plan.bits(kind),
        }
        clients = {
            i: SecAggClient(
                **common,
                index=i,
                identity=identity,
                ledger=(stated or {}).get(i) or self.ledgers[i].head(),
                facts=self.ledgers[i].facts(),
                csprng=Csprng.from_os(),
            )
            for i, identity in self.identities.items()
        }
        server = SecAggServer(**common)
        for client in clients.values():
            server.receive(client.advertise())
        roster = server.close_adverts()
        self.exchange.put(layout.down(self.job_id, order.sequence, "roster"), roster)
        for client in clients.values():
            server.receive(client.on_roster(roster))
        for i, delivery in server.close_shares().items():
            clients[i].on_delivery(delivery)
        event = event or (training_event if kind is Kind.TRAIN else evaluation_event)(self.job.plan)
        half = account or ("demo/train" if kind is Kind.TRAIN else "demo/holdout")
        for i, client in clients.items():
            chunks = []
            words = self._words(kind, i, order)
            masked = client.mask(words, lambda index, data, to=chunks: to.append(data))
            if charge is True or (charge and i in charge):
                self.ledgers[i].reserve(
                    half,
                    event,
                    context=client.context,
                    job=self.job_id,
                    manifest=self.job.digest,
                    round=order.round,
                    attempt=order.attempt,
                    purpose=kind.word,
                    release=masked,
                )
            if i not in drop:
                server.receive(masked, chunks.__getitem__)
                for index, data in enumerate(chunks):
                    key = layout.vector(self.job_id, order.sequence, i, index)
                    self.exchange.put(key, data)
                key = layout.up(self.job_id, order.sequence, "masked", i)
                self.exchange.put(key, masked)
        if abort:
            return None
        present = [c for i, c in clients.items() if i not in drop and i not in silent]
        chosen = server.close_masked()
        for client in present:
            server.receive(client.on_survivors(chosen))
        consistency = server.close_signatures()
        for client in present:
            server.receive(client.on_consistency(consistency))
            if settle and (settled_by is None or self._index(clients, client) in settled_by):
                number = len(client.survivors) if survivors is None else survivors
                if client.context in {e.context for e in self._charges(client)}:
                    self.ledgers[self._index(clients, client)].settle(client.context, number)
        outcome = server.close_unmask()
        for index in range(len(outcome.transcript.sum_chunks)):
            part = outcome.sum[index * CHUNK_WORDS : (index + 1) * CHUNK_WORDS]
            key = layout.total(self.job_id, order.sequence, index)
            self.exchange.put(key, pack(part, common["bits"]))
        sealed = seal(self.coordinator, outcome.transcript)
        self.exchange.put(layout.transcript(self.job_id, order.sequence), sealed)
        if follow:
            self.follow(order, outcome, publish_model)
        return outcome

    def follow(self, order, outcome, publish=True):
        # from what the order says, so that a coordinator can also go on from a lie
        base = State(order.previous, 0, order.model, order.value_range)
        self.state, self.vector = advance(
            self.rules, base, order, outcome.transcript, self.vector, outcome.sum
        )
        if publish and order.kind == Kind.TRAIN:
            data = model_file(self.vector, self.spec)
            self.exchange.put(layout.blob(self.job_id, self.state.model), data)

    def _words(self, kind, site, order):
        if kind is Kind.EVALUATE:
            return encode_integers(np.arange(order.dimension, dtype=np.int64) + site, 1 << 22)
        d = order.dimension - 1
        values = np.linspace(-1, 1, d, dtype=np.float32) * (site + 1) / 10
        coding = self.job.plan.coding(len(self.job.roster), order.value_range)
        return coding.encode(values.astype(np.float32), 1.0, Csprng.from_os())

    def _charges(self, client):
        return [
            e for ledger in self.ledgers.values() for e in ledger.entries()
            if e.kind == "reserve" and e.context == client.context
        ]  # fmt: skip

    @staticmethod
    def _index(clients, client):
        return next(i for i, c in clients.items() if c is client)

    def end(self, model=None):
        message = JobEnd(self.job.digest, self.sequence, "completed", "", model or self.state.model)
        self.exchange.put(layout.end(self.job_id), seal(self.coordinator, message))

    def export(self):
        folder = self.folder / "audit" / "ledgers"
        folder.mkdir(parents=True, exist_ok=True)
        for index, ledger in self.ledgers.items():
            ledger.export(folder / f"{self.job.labels[index]}.jsonl")

    def finish(self):
        self.end()
        self.export()
        return self.folder


def payload(folder, key):
    return unframe((folder / "exchange" / key).read_bytes())


def replace(folder, key, data):
    """Overwrite an object with other bytes in an intact frame."""
    (folder / "exchange" / key).write_bytes(frame(data))


def copy(folder, target):
    shutil.copytree(folder, target)
    return target
