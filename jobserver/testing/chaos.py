"""Trees of random shape, of which processes are killed at any instant; and what is left then.

    this process ── forks ──> root ── starts ──> observer, which has the handle, and waits
         │                      └──── submits ─> workers ── submit ─> workers ...
         └──────── forks ──> oracle: how many compute at once

A round has its own of all of these. Workers, and in some rounds the root, kill themselves at
labelled points of the library (`fuses`), and are killed, stopped and continued from here. When
nothing runs any more, a handle that survived must have all slots again. Linux only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Generator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Callable, Final, Optional, cast

import attrs

from ..errors import Blocked
from ..future import Future
from ..server import Jobserver
from . import fuses, journal, oracle, thicket
from .processes import Group, adopt_orphans, reap_orphans

PATIENCE: Final = 60.0  # seconds after which what has not ended hangs; it takes a few at worst
RECOVERY: Final = 5.0  # seconds in which slots of the dead must be free again
ENOUGH: Final = 20  # failures after which nothing new is learned
_WAKE: Final = 1.0  # seconds after which somebody stopped is continued
_LOOK: Final = 0.005  # seconds between two looks at processes

_fork = multiprocessing.get_context("fork")


@attrs.frozen
class Pace:
    """How fast things happen: a process costs a millisecond or a tenth of a second."""

    seconds: float  # for which a root submits
    between: float  # seconds between two attacks from outside, on average
    odds: float  # that a process draws to kill itself
    nap: float  # seconds at most that work computes without a break
    slots: tuple[int, ...]  # one of these, if none is asked for


PACES: Final = {
    "fork": Pace(seconds=2.0, between=0.05, odds=0.5, nap=0.02, slots=(1, 2, 2, 3, 4)),
    "spawn": Pace(seconds=8.0, between=0.4, odds=0.5, nap=0.4, slots=(1, 1, 2, 2, 3)),
    "forkserver": Pace(seconds=6.0, between=0.3, odds=0.5, nap=0.4, slots=(1, 1, 2, 2, 3)),
}


@attrs.define
class Tally:
    """What has come of it."""

    rounds: int = 0
    points: Counter[str] = attrs.field(factory=Counter[str])  # self-kills by label
    outside: int = 0  # kills from outside
    roots: int = 0  # roots that died, either way
    stops: int = 0
    lost: int = 0
    looks: int = 0  # of the oracle
    full: int = 0  # rounds in which it saw as many compute as may
    leaked: int = 0  # slots
    oversubscribed: int = 0  # times that more than `slots` computed, and slots too many at the end
    hangs: int = 0
    unexpected: int = 0  # exceptions

    @property
    def kills(self) -> int:
        return self.outside + sum(self.points.values())

    @property
    def failed(self) -> int:
        return self.leaked + self.oversubscribed + self.hangs + self.unexpected

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds ({self.full} full), {self.kills} kills "
            f"({sum(self.points.values())} at {len(self.points)} of {len(fuses.LABELS)} points, "
            f"{self.outside} from outside, {self.roots} of a root), {self.stops} stops, "
            f"{self.looks} counts, {self.lost} results lost, {self.leaked} slots leaked, "
            f"{self.oversubscribed} oversubscriptions, {self.hangs} hangs, "
            f"{self.unexpected} unexpected exceptions"
        )


@attrs.frozen
class Plan:
    """What a root is told."""

    method: str
    slots: int
    seconds: float  # for which it submits
    doomed: bool  # whether it may kill itself
    stderr: Path
    scene: thicket.Scene


class Hang(Exception):
    """Something has not happened within `PATIENCE`."""


class Chaos:
    """Rounds with one start method, for so many seconds."""

    def __init__(
        self, method: str, seconds: float, seed: Optional[str] = None, slots: Optional[int] = None
    ) -> None:
        self.method = method
        self.seconds = seconds
        self.seed: str = secrets.token_hex(4) if seed is None else seed
        self.slots = slots
        self.tally: Tally = Tally()

    def run(self) -> int:
        """Print what comes of it; the exit status."""
        adopt_orphans()
        print(f"chaos {self.method}: seed {self.seed}", flush=True)
        start = said = time.monotonic()
        while time.monotonic() < start + self.seconds and self.tally.failed < ENOUGH:
            self.tally.rounds += 1
            directory = Path(tempfile.mkdtemp(prefix="chaos-"))
            try:
                _Round(self, f"{self.seed}-{self.tally.rounds}", directory).run()
            finally:
                shutil.rmtree(directory)
            if time.monotonic() > said + 30:
                said = time.monotonic()
                print(f"chaos {self.method}: {said - start:.0f} s: {self.tally}", flush=True)
        elapsed = time.monotonic() - start
        print(f"chaos {self.method}: {elapsed:.0f} s: {self.tally}", flush=True)
        return int(self.tally.failed > 0)


class _Round:
    def __init__(self, chaos: Chaos, lineage: str, directory: Path) -> None:
        self.tally = chaos.tally
        self.draw = random.Random(lineage)
        self.method = chaos.method
        self.pace = PACES[chaos.method]
        self.slots = chaos.slots or self.draw.choice(self.pace.slots)
        self.root_dies = self.draw.random() < 0.5
        self.lineage = lineage
        self.stderr = directory / "stderr"
        self.scene = thicket.Scene(
            journal=str(directory / "journal"),
            oracle=str(directory / "oracle"),
            lineage=lineage,
            depth=self.draw.randint(1, 4),
            odds=self.pace.odds,
            nap=self.pace.nap,
            executors=self.draw.random() < 0.5,
            reuse=self.draw.random() < 0.5,
        )
        self.reports: dict[str, Connection] = {}
        self.observer = 0
        self.oversubscribed = 0

    def run(self) -> None:
        with self._counted():
            root = self._start_root()
            group = Group(root.pid or 0)
            try:
                self._attack(root, group)
                self._calm(root, group)
                self._check(root)
            except Hang as error:
                self.tally.hangs += 1
                self._complain(f"hangs: {error}\n{self._where(group)}")
            except (EOFError, ConnectionError) as error:
                self.tally.unexpected += 1
                self._complain(f"root or observer ended: {error!r}\n{self._tail()}")
            finally:
                group.end()
                root.join()
                reap_orphans(set())
                for report in self.reports.values():
                    report.close()
                self.tally.roots += root.exitcode == -signal.SIGKILL
        self._read_journal()

    @contextlib.contextmanager
    def _counted(self) -> Generator[None, None, None]:
        """An oracle counts, within."""
        stop, stopping = os.pipe()
        ours, theirs = _fork.Pipe(duplex=False)
        counter = _fork.Process(
            target=_count, args=(self.scene.oracle, self.slots, stop, theirs), name="oracle"
        )
        counter.start()
        theirs.close()
        try:
            yield
        finally:
            os.write(stopping, b".")
            most, looks, excesses = ours.recv()
            counter.join()
            for end in (stop, stopping):
                os.close(end)
            ours.close()
        self.tally.looks += looks
        self.tally.full += most >= self.slots
        if excesses:
            self.tally.oversubscribed += excesses
            self._complain(f"{most} computed at once on {self.slots} slots, {excesses} times")

    def _start_root(self) -> ForkProcess:
        doomed = self.root_dies and self.draw.random() < 0.5
        plan = Plan(self.method, self.slots, self.pace.seconds, doomed, self.stderr, self.scene)
        pipes = {name: _fork.Pipe() for name in ("root", "observer")}
        self.reports = {name: ends[0] for name, ends in pipes.items()}
        theirs = {name: ends[1] for name, ends in pipes.items()}
        args = plan, list(self.reports.values()), theirs["root"], theirs["observer"]
        root = _fork.Process(target=_plant, args=args, name="root")
        root.start()
        for end in theirs.values():
            end.close()
        return root

    def _attack(self, root: ForkProcess, group: Group) -> None:
        """Let the tree grow, and kill, stop and continue members of it, until it has ended."""
        self.observer = self._hear("observer", root)
        self.reports["root"].send("grow")
        killed_at = self.draw.random() * self.pace.seconds if self.root_dies else None
        start = time.monotonic()
        attack = start
        wake = start + _WAKE
        while root.is_alive() and not self.reports["root"].poll(0):
            now = time.monotonic()
            if now > start + self.pace.seconds + PATIENCE:
                raise Hang("the root")
            if killed_at is not None and now > start + killed_at:
                self.tally.outside += group.kill(root.pid or 0)
                killed_at = None
            if attack < now < start + self.pace.seconds:
                attack = now + self.draw.expovariate(1 / self.pace.between)
                self._attack_one(root, group)
            group.go_on()
            if now > wake:
                group.wake()
                wake = now + _WAKE
            reap_orphans({root.pid or 0})
            time.sleep(_LOOK)

    def _attack_one(self, root: ForkProcess, group: Group) -> None:
        spared = {root.pid, self.observer}
        victims = [m.pid for m in group.members() if m.pid not in spared and not m.tracker]
        if not victims:
            return
        victim = self.draw.choice(victims)
        if self.draw.random() < 0.2:
            self.tally.stops += group.stop(victim, self.draw.random() * 0.2)
        else:
            self.tally.outside += group.kill(victim)

    def _calm(self, root: ForkProcess, group: Group) -> None:
        """Wait until nothing runs any more."""
        group.go_on(everybody=True)
        start = time.monotonic()
        wake = start
        while True:
            if time.monotonic() > wake:
                group.wake()
                wake += _WAKE
            reap_orphans({root.pid or 0})
            spared = {root.pid, self.observer}
            rest = [m.pid for m in group.members() if m.pid not in spared and not m.helper]
            if not rest:
                return
            if time.monotonic() > start + PATIENCE:
                raise Hang(f"processes {rest}, of which none is the root")
            time.sleep(_LOOK)

    def _check(self, root: ForkProcess) -> None:
        """Whether those who are still there have all slots."""
        for name in ("root", "observer"):
            if name == "root":
                if not root.is_alive():
                    continue
                self._hear("root", root)  # that it has done
            report = self.reports[name]
            report.send("check")
            had, error = self._hear(name, root)
            if error:
                self.tally.unexpected += 1
                self._complain(f"the {name} cannot count slots:\n{error}")
            elif had < self.slots:
                self.tally.leaked += self.slots - had
                self._complain(f"the {name} finds {had} of {self.slots} slots")
                break
            elif had > self.slots:
                self.tally.oversubscribed += 1
                self._complain(f"the {name} finds more than {self.slots} slots")
                break

    def _hear(self, name: str, root: ForkProcess) -> Any:
        if not self.reports[name].poll(PATIENCE):
            raise Hang(f"the {name}" + ("" if root.is_alive() else ", without a root"))
        return self.reports[name].recv()

    def _read_journal(self) -> None:
        for kind, text in journal.read(self.scene.journal):
            if kind == journal.KILLED:
                self.tally.points[text] += 1
            elif kind == journal.LOST:
                self.tally.lost += 1
            else:
                self.tally.unexpected += 1
                self._complain(f"unexpected exception:\n{text}")

    def _where(self, group: Group) -> str:
        """What everybody is doing."""
        described = group.describe()
        for member in group.members():
            if not member.helper:
                pidfd = group.send(member.pid, signal.SIGUSR1)
                if pidfd is not None:
                    os.close(pidfd)
        time.sleep(1)  # for them to write where they are
        return f"{described}\n{self._tail()}"

    def _tail(self) -> str:
        return self.stderr.read_text(errors="replace")[-10_000:] if self.stderr.exists() else ""

    def _complain(self, text: str) -> None:
        print(f"chaos {self.method}: round {self.lineage}: {text}", flush=True)


def _count(path: str, slots: int, stop: int, report: Connection) -> None:
    count = oracle.watch(path, slots, stop)
    report.send((count.most, count.looks, count.excesses))


def _plant(
    plan: Plan, not_ours: list[Connection], report: Connection, observers: Connection
) -> None:
    """The root: makes the slots, shares them with an observer, and has a tree grow."""
    os.setpgid(0, 0)
    for end in not_ours:
        end.close()
    with open(plan.stderr, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    fuses.install()
    js = Jobserver(plan.method, plan.slots)
    make = cast(
        "Callable[..., BaseProcess]",
        js.context.Process,  # type: ignore[attr-defined]  # typeshed: subclasses only
    )
    observer = make(target=_observe, args=(js, plan.slots, observers), name="observer")
    observer.start()
    observers.close()
    with contextlib.suppress(EOFError):
        report.recv()
        fuses.arm(plan.scene.journal, plan.scene.lineage, plan.scene.odds, spared=not plan.doomed)
        thicket.root(js, plan.scene, plan.seconds)
        fuses.disarm()
        report.send("grown")
        _attend(js, plan.slots, report)


def _observe(js: Jobserver, slots: int, report: Connection) -> None:
    report.send(os.getpid())
    _attend(js, slots, report)


def _attend(js: Jobserver, slots: int, report: Connection) -> None:
    faulthandler.register(signal.SIGUSR1)
    with contextlib.suppress(EOFError):
        while True:
            report.recv()
            try:
                report.send((_free(js, slots), ""))
            except Exception:
                report.send((0, traceback.format_exc()))


def _free(js: Jobserver, slots: int) -> int:
    """How many slots can be had at once: up to one more than there should be."""
    held: list[Future[None]] = []
    deadline = time.monotonic() + RECOVERY
    try:
        while len(held) <= slots:
            # One too many must not be there; all others may take their time.
            left = 0.0 if len(held) == slots else max(0.0, deadline - time.monotonic())
            held.append(js.submit(signal.pause, timeout=left))
    except Blocked:
        pass
    finally:
        for future in held:
            future.wait(PATIENCE, signal=signal.SIGKILL)
    return len(held)
