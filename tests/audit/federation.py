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
from fedflow.learning.model_file import ModelSpec, encode_model, flatten, model_digest, unflatten
from fedflow.learning.strategy import apply
from fedflow.privacy.ledger import Ledger
from fedflow.privacy.plan_cost import evaluation_event, training_event
from fedflow.secagg.client import SecAggClient
from fedflow.secagg.context import RoundContext
from fedflow.secagg.quantise import Quantiser, encode_integers
from fedflow.secagg.server import SecAggServer
from fedflow.wire.messages import Countersignature, JobEnd, Kind, Order, labelled_hash
from fedflow.wire.sealed import seal

JOB = "test-job"
LABELS = ["north", "east", "south", "west"]


def make_plan(rounds=4):
    return plans.make_plan(**{**plans.SMALL, "plan__rounds": rounds})


class Federation:
    """Runs rounds into ``folder``; keeps every key, so that tests can also cheat knowingly."""

    def __init__(self, folder: Path, labels=LABELS, job=JOB):
        self.folder, self.job_id = folder, job
        self.authority, self.coordinator = Identity.generate(), Identity.generate()
        self.sites = {label: Identity.generate() for label in labels}
        self.exchange = open_exchange(str(folder / "exchange"))
        arrays = {"b": np.zeros(2, np.float32), "w": np.full((2, 3), 0.5, np.float32)}
        self.spec, self.vector = ModelSpec.of(arrays), flatten(arrays)
        data = encode_model(arrays)
        create_job(
            self.exchange,
            job=job,
            plan=make_plan(),
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
        self.model, self.previous, self.sequence = model_digest(data), bytes(32), 0

    def order(self, number, kind=Kind.TRAIN, attempt=1, **changes):
        """The next order, published."""
        self.sequence += 1
        train = kind is Kind.TRAIN
        fields = {
            "manifest": self.job.digest,
            "sequence": self.sequence,
            "round": number,
            "attempt": attempt,
            "kind": int(kind),
            "model": self.model,
            "previous": self.previous,
            "dimension": self.job.manifest.dimension
            if train
            else 2 * self.job.plan.evaluation.bins,
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
        settle=True, event=None, account=None, survivors=None, publish_model=True, **changes,
    ):  # fmt: skip
        """One order to its sum. ``drop``: charged but never sent. ``silent``: sent, then vanished.

        ``abort`` ends it after the masked vectors; ``charge`` may be a set of sites that do charge.
        """
        order = self.order(number, kind, attempt, **changes)
        common = {
            "round_ctx": self.context(order),
            "roster": self.job.roster,
            "colluders": 0,
            "minimum": 3,
            "dimension": order.dimension,
        }
        clients = {
            i: SecAggClient(
                **common,
                index=i,
                identity=identity,
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
            masked = client.mask(self._words(kind, i, order.dimension))
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
                server.receive(masked)
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
            if settle:
                number = len(client.survivors) if survivors is None else survivors
                if client.context in {e.context for e in self._charges(client)}:
                    self.ledgers[self._index(clients, client)].settle(client.context, number)
        outcome = server.close_unmask()
        sealed = seal(self.coordinator, outcome.transcript)
        self.exchange.put(layout.transcript(self.job_id, order.sequence), sealed)
        self.previous = labelled_hash("transcript", outcome.transcript.encode())
        if kind is Kind.TRAIN:
            self._update(outcome, publish_model)
        return outcome

    def _words(self, kind, site, dimension):
        if kind is Kind.EVALUATE:
            return encode_integers(np.arange(dimension, dtype=np.int64) + site, 1 << 22)
        values = np.linspace(-1, 1, dimension, dtype=np.float32) * (site + 1) / 10
        return self._quantiser().encode(values, Csprng.from_os())

    def _quantiser(self):
        secure = self.job.plan.secure_aggregation
        return Quantiser(
            bits=secure.bits, value_range=secure.value_range, sites=len(self.job.roster)
        )

    def _update(self, outcome, publish):
        total = self._quantiser().decode(outcome.sum)
        self.vector = apply(self.vector, total, len(outcome.survivors), self.job.plan)
        data = encode_model(unflatten(self.vector, self.spec))
        self.model = model_digest(data)
        if publish:
            self.exchange.put(layout.blob(self.job_id, self.model), data)

    def _charges(self, client):
        return [
            e for ledger in self.ledgers.values() for e in ledger.entries()
            if e.kind == "reserve" and e.context == client.context
        ]  # fmt: skip

    @staticmethod
    def _index(clients, client):
        return next(i for i, c in clients.items() if c is client)

    def end(self, model=None):
        message = JobEnd(self.job.digest, self.sequence, "completed", "", model or self.model)
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
