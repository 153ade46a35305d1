"""One run of the chaos driver: jobs, checks after each, and the table at the end."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from chaos_aim import Aim
from chaos_checks import Findings, JobCheck, check_price, private_words, read_ledger, scan_for
from chaos_driver import Driver, Stuck, Tally, count, ended, log_paths
from chaos_federation import Federation, build
from chaos_logs import mentions, relay_answers, unexpected
from chaos_world import World, chaos_plan

from fedflow.audit.verify import verify_folder
from fedflow.coordinator.job import Job
from fedflow.crypto.identity import Identity
from fedflow.orchestration.local_server import free_port
from fedflow.privacy.ledger import Ledger

#: How long after its deadline an order may stay without any end (seconds): its coordinator may have
#: been killed several times, and starts in seconds each time.
GRACE_SECONDS = 90.0


class Run:
    """One run of the driver."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seed = options.seed if options.seed is not None else secrets.randbits(64)
        self.folder = options.keep or Path(tempfile.mkdtemp(prefix="fedflow-chaos-"))
        self.findings = Findings()
        self.job = ""
        self.began = time.monotonic()
        self.audited = "not audited"
        self._shown = ("", 0.0)

    def run(self) -> int:
        """All of it; the exit status."""
        options = self.options
        plan = chaos_plan(options.rounds, options.leg_seconds)
        self.world, self.tally = self._open(plan)
        print(f"seed {self.seed}; everything is in {self.folder}", flush=True)
        federation = build(
            self.world,
            server=options.server,
            job=lambda: self.job,
        )
        targets = federation.targets
        if options.targets != "all":
            wanted = options.targets.split(",")
            if unknown := sorted(set(wanted) - set(targets)):
                raise SystemExit(f"chaos: unknown targets {unknown}; there are {targets}")
            targets = wanted
        aim = Aim(self.seed, targets, options.every)
        driver = Driver(self.world, aim, federation.units, self.tally)
        driver.api, driver.goal, driver.show = federation.server.api_url, options.kills, self._show
        self.driver = driver
        interrupted = False
        try:
            self._main(driver, federation)
        except Stuck as stuck:
            self.findings.say(str(stuck))
        except KeyboardInterrupt:
            interrupted = True
            print("\ninterrupted: ending what was started", flush=True)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self.tally.seconds += time.monotonic() - self.began
            self._save()
            driver.stop()
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.tally.processor_seconds += used.ru_utime + used.ru_stime
            federation.close()
        return self._end(driver, interrupted)

    def _main(self, driver: Driver, federation: Federation) -> None:
        driver.start_all(120.0, federation.ready)
        exchange = self.world.stored()
        while self.job or self.tally.total < self.options.kills:
            resumed = bool(self.job)
            if not resumed:
                self.tally.jobs += 1
                self.job = f"chaos-{self.tally.jobs:04d}"
            self._save()
            job = self.world.job(self.job) or self._publish(driver)
            driver.run_job(job)
            driver.wait_for_sessions(self.job)
            if not ended(self.world, self.job):
                self.findings.say(f"{self.job}: the coordinator left without ending it")
            ledgers = {
                label: read_ledger(self.world, label, self.findings) for label in self.world.labels
            }
            for paid in ledgers.values():
                check_price(paid, self.findings)
            check = JobCheck(self.world, exchange, job, self.findings)
            outcome = check.run(ledgers)
            if not resumed:  # else nobody was there to end its orders
                driver.check_deadlines(job, check.orders, GRACE_SECONDS)
            count(self.tally.outcomes, outcome)
            if outcome != "completed":
                self.findings.say(f"{self.job} ended as {outcome}")
            self.job = ""
            self._save()
            if self.tally.jobs % self.options.audit_every == 0:
                self._audit()
        self._audit()
        self._scan(federation)

    def _publish(self, driver: Driver) -> Job:
        """The next job, once the relay can be reached."""
        made: list[Job] = []

        def publish() -> bool:
            try:
                made.append(self.world.add_job(self.job))
            except OSError:
                return False
            return True

        if not driver.pump(60.0, publish):
            raise Stuck("the exchange cannot be reached, though nothing was killed for a minute")
        return made[0]

    # ---- checks over everything

    def _audit(self) -> None:
        """``fedflow audit verify`` over all jobs so far, in its own words."""
        for label in self.world.labels:
            site = self.world.site(label)
            ledger = Ledger.open(site / "ledger.sqlite", Identity.load(site / "identity.pem"))
            target = self.world.folder / "audit" / "ledgers" / f"{label}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            ledger.export(target)
            ledger.close()
        report = verify_folder(self.world.folder)
        self.audited = f"{len(report.jobs)} jobs verified" if report.ok else "FAILED"
        (self.folder / "audit.json").write_text(json.dumps(report.as_dict(), indent=1))
        for found in report.findings:
            if found.severity == "error":
                self.findings.say(f"the audit says: {found.code}: {found.sentence}")

    def _scan(self, federation: Federation) -> None:
        """What the Prefect server stores holds nothing of a site's."""
        files = sorted(self.world.folder.glob("prefect/prefect.db*"))
        if federation.database is not None:
            dump = self.folder / "prefect-dump.sql"
            dump.write_bytes(_dump(federation.database))
            files.append(dump)
        scan_for(private_words(self.world), files, self.findings)

    # ---- showing, saving, ending

    def _open(self, plan: object) -> tuple[World, Tally]:
        self.folder.mkdir(parents=True, exist_ok=True)
        state, old = self.folder / "state.json", self.folder / "world.json"
        if state.exists() and old.exists():  # a run that was interrupted goes on
            raw = json.loads(state.read_text())
            self.job, counts = raw.pop("job"), raw.pop("checked")
            if self.options.seed is None:
                self.seed = raw["seed"] + raw["jobs"]
            del raw["seed"]
            self.findings.counts.update(counts)
            print(f"going on after {sum(raw['kills'].values())} kills", flush=True)
            return World.load(self.folder, plan), Tally(**raw)
        world = World.make(self.folder, plan, self.options.sites)
        url = f"http://127.0.0.1:{free_port()}" if self.options.exchange == "relay" else ""
        world.populate(url or str(world.store))
        return world, Tally()

    def _save(self) -> None:
        raw = dataclasses.asdict(self.tally) | {
            "seed": self.seed,
            "job": self.job,
            "checked": dict(self.findings.counts),
        }
        aside = self.folder / "state.json.new"
        aside.write_text(json.dumps(raw))
        os.replace(aside, self.folder / "state.json")

    def _show(self) -> None:
        now = time.monotonic()
        text = (
            f"{self.tally.total}/{self.options.kills} kills, job {self.tally.jobs}, "
            f"{self.findings.counts['rounds']} rounds checked, "
            f"{len(self.findings.wrong) + len(self.driver.wrong)} faults, {now - self.began:.0f} s"
        )
        pause = 0.5 if sys.stderr.isatty() else 15.0
        if now - self._shown[1] > pause:
            end = "\r" if sys.stderr.isatty() else "\n"
            print(text, end=end, file=sys.stderr, flush=True)
            self._shown = (text, now)

    def _end(self, driver: Driver, interrupted: bool) -> int:
        logs = log_paths(self.world)
        for line, times in unexpected(logs).items():
            self.findings.say(f"in a log, {times} times: {line}")
        if taken := mentions(logs, "already-put"):
            self.findings.say(f"{taken} lines of logs say that a name was taken by other bytes")
        answered = relay_answers(self.world.logs("relay"))
        if other := [f"{code} ({n})" for code, n in answered.items() if "already-put" in code]:
            self.findings.say(f"the relay was asked to replace what it had: {', '.join(other)}")
        for command in driver.orphans.found:
            self.findings.say(f"a process outlived its parent: {command[:100]}")
        wrong = self.findings.wrong + driver.wrong
        for line in table(self.tally, self.findings.counts, self.audited, answered):
            print(line)
        for sentence in dict.fromkeys(wrong):
            print(f"FAULT  {sentence}")
        self.world.note(event="end", seed=self.seed, faults=wrong, **dataclasses.asdict(self.tally))
        self.world.close(keep=bool(self.options.keep or wrong or interrupted))
        if interrupted:
            return 130
        print("survived" if not wrong else f"{len(wrong)} faults; see {self.folder}")
        return 1 if wrong else 0


def _dump(database: object) -> bytes:
    tables = database.query("select tablename from pg_tables where schemaname = 'public'")
    rows = [database.query(f'select * from "{name}"') for name in tables.split()]
    return "\n".join(rows).encode()


def table(tally: Tally, counts: Counter[str], audited: str, answered: Counter[str]) -> list[str]:
    """The run in figures."""
    kills = tally.total
    rows = [("kills", str(kills))]
    rows += [(f"  {kind}", str(number)) for kind, number in sorted(tally.kills.items())]
    rows += [
        ("  aimed at an event", f"{sum(tally.aimed.values())}, of {len(tally.aimed)} kinds"),
        ("  several at once", str(tally.storms)),
        ("jobs", ", ".join(f"{n} {what}" for what, n in sorted(tally.outcomes.items()))),
        ("training rounds", str(counts["rounds"])),
        ("orders", f"{counts['orders']}, {counts['orders without a sum']} without a sum"),
        ("sums checked again", str(counts["sums"])),
        ("lost sites, masks recovered", str(counts["lost sites whose masks were recovered"])),
        ("releases, each paid once", str(counts["releases"])),
        ("charges without a release", str(counts["charges"] - counts["releases"])),
        ("the relay answered", ", ".join(f"{n} {what}" for what, n in answered.items()) or "-"),
        ("ended by themselves", ", ".join(f"{k} {n}" for k, n in sorted(tally.ended.items()))),
        ("left alone to recover", str(tally.calms)),
        ("killed coordinators' runs still shown", str(tally.zombies)),
        ("longest time without a sum", f"{tally.longest_stall:.1f} s"),
        ("audit", audited),
        ("seconds", f"{tally.seconds:.0f}, {tally.seconds / max(kills, 1):.1f} per kill"),
        ("of a processor", f"{tally.processor_seconds:.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
