"""Work that submits work, of random shape: what chaos is let loose on.

Every function here runs under the kills of `chaos`. Whatever the library raises is noted in the
journal, so a tree needs nobody who survives to tell of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Generator
from concurrent.futures import Future as ExecutorFuture
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Final, Optional

import attrs

from ..errors import Blocked, LostResult
from ..executor import JobserverExecutor
from ..future import Future
from ..server import Jobserver
from . import fuses, journal, oracle

_OUTSTANDING: Final = 6  # Futures at most that the root keeps
_FAN: Final = 4  # things at most that a branch does

# As build tools do: takes a slot if there is one, naps for so many seconds, and gives it back.
_COMMAND: Final = """
pipe=${MAKEFLAGS##*=}
token=$(dd if=/proc/self/fd/${pipe%,*} iflag=nonblock bs=1 count=1 2> /dev/null)
sleep $1
printf %s "$token" > /proc/self/fd/${pipe#*,}
"""


@attrs.frozen
class Scene:
    """What every process of a tree is told."""

    journal: str
    oracle: str
    lineage: str  # seeds whatever this process decides
    depth: int  # of the tree below
    odds: float  # that a process draws to kill itself
    nap: float  # seconds at most that work computes without a break
    executors: bool  # whether there may be any
    reuse: bool  # whether workers may serve again

    def below(self, number: int) -> Scene:
        return attrs.evolve(self, lineage=f"{self.lineage}/{number}", depth=self.depth - 1)

    def note(self, kind: str, text: str = "") -> None:
        journal.note(self.journal, kind, text)


@contextlib.contextmanager
def _born(scene: Scene, *, counted: bool) -> Generator[None, None, None]:
    """The life of a worker: armed, counted if it holds a slot, and none of its errors is missed."""
    faulthandler.register(signal.SIGUSR1)  # `chaos` asks so what hangs where
    oracle.forget()
    fuses.arm(scene.journal, scene.lineage, scene.odds)
    try:
        with oracle.computing(scene.oracle) if counted else contextlib.nullcontext():
            yield
    except BaseException:
        scene.note(journal.UNEXPECTED, traceback.format_exc())


def leaf(scene: Scene, number: int) -> int:
    """Work that submits nothing."""
    with _born(scene.below(number), counted=True):
        time.sleep(scene.nap * random.Random(scene.lineage).random())
    return number


def branch(js: Jobserver, scene: Scene, counted: bool) -> None:
    """Work that submits."""
    with _born(scene, counted=counted):
        grower = _Grower(js, scene, patient=counted)
        for _ in range(grower.draw.randint(1, _FAN)):
            grower.act()
        # Now and then nobody waits for what was begun: the process sees to it as it ends.
        if grower.draw.random() < 0.8:
            grower.settle_all()


def root(js: Jobserver, scene: Scene, seconds: float) -> None:
    """The top of the tree, for so long. It holds no slot."""
    faulthandler.register(signal.SIGUSR1)
    grower = _Grower(js, scene, patient=True)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            grower.act()
            while len(grower.futures) > _OUTSTANDING:
                grower.settle(grower.futures.pop(0))
        grower.settle_all()
    except BaseException:
        scene.note(journal.UNEXPECTED, traceback.format_exc())


class _Grower:
    """What one process does, one random thing after the other."""

    def __init__(self, js: Jobserver, scene: Scene, *, patient: bool) -> None:
        self.js = js
        self.scene = scene
        self.draw = random.Random(scene.lineage)
        self.number = 0
        self.futures: list[Future[Any]] = []
        # Work that has no slot has none to lend. If it waited without end for one, and somebody
        # who holds the only slot waited for it, both would do so for ever.
        self.actions: dict[Callable[[], None], int] = {
            self.compute: 2,
            self.submit: 5 * patient,
            self.submit_impatiently: 3,
            self.submit_without_slot: 1,
            self.map: 1 * patient,
            self.run: 2 * patient,
            self.look: 2,
            self.send_signal: 1,
            self.execute: 1 * (patient and scene.executors),
        }

    def act(self) -> None:
        """Do one thing."""
        self.number += 1
        if self.scene.depth <= 0:
            time.sleep(self.scene.nap * self.draw.random())
            return
        (action,) = self.draw.choices(list(self.actions), list(self.actions.values()))
        action()

    def compute(self) -> None:
        time.sleep(self.scene.nap * self.draw.random())

    def handle(self) -> Jobserver:
        """With fresh workers, or with some that serve again, at times hardly longer."""
        if not self.scene.reuse or self.draw.random() < 0.2:
            return self.js.replace_workers(max_tasks=1)
        most, idle = self.draw.choice([None, 2, 5]), self.draw.choice([0, 0.001, 0.02, 10.0])
        return self.js.replace_workers(most, idle)

    def submit(self) -> None:
        """Without end, so perhaps on the slot of this very process, which is not counted then."""
        with oracle.waiting(self.scene.oracle):
            self._submit(consume=1, timeout=None)

    def submit_impatiently(self) -> None:
        with contextlib.suppress(Blocked):
            self._submit(consume=1, timeout=self.draw.choice([0, 0, 0.001, 0.05]))

    def submit_without_slot(self) -> None:
        self._submit(consume=0, timeout=None)

    def _submit(self, consume: int, timeout: Optional[float]) -> None:
        below, js = self.scene.below(self.number), self.handle()
        if consume and self.draw.random() < 0.3:
            future: Future[Any] = js.submit(leaf, args=(below, 0), timeout=timeout)
        else:
            args = self.js, below, consume == 1
            future = js.submit(branch, args=args, consume=consume, timeout=timeout)
        self.futures.append(future)

    def map(self) -> None:
        calls = [(self.scene, self.number * 1000 + number) for number in range(3)]
        chunksize = self.draw.choice([1, 2])
        with oracle.waiting(self.scene.oracle):
            results = self.handle().map(leaf, calls, chunksize=chunksize)
            for _ in calls:
                try:
                    next(results, None)
                except LostResult as error:
                    self._lost(error)

    def run(self) -> None:
        """A command, on the slot of this very process if it has one."""
        nap = str(self.scene.nap * self.draw.random())
        with oracle.waiting(self.scene.oracle):
            command = ["sh", "-c", _COMMAND, "sh", nap]
            self.js.run(command, style="pipe", stdin=subprocess.DEVNULL)

    def look(self) -> None:
        """See how one is doing, not at all or for a moment."""
        if self.futures:
            self.draw.choice(self.futures).done(self.draw.choice([0, 0.005]))
        self.js.reclaim_resources()

    def send_signal(self) -> None:
        """As a user does: cancel, or stop and continue."""
        if not self.futures:
            return
        future = self.draw.choice(self.futures)
        if self.draw.random() < 0.5:
            future.wait(0, signal=signal.SIGTERM)
        else:
            future.wait(self.draw.choice([0, 0.01]), signal=signal.SIGSTOP)
            future.wait(0, signal=signal.SIGCONT)

    def execute(self) -> None:
        """The same through an executor."""
        futures: list[ExecutorFuture[Any]] = []
        with oracle.waiting(self.scene.oracle), JobserverExecutor(self.handle()) as executor:
            for number in range(self.draw.randint(1, 3)):
                args = self.js, self.scene.below(self.number * 1000 + number), True
                try:
                    futures.append(executor.submit(branch, *args))
                except BrokenProcessPool as error:
                    self._lost(error)
            for future in futures:
                self._settle(future.result)

    def settle_all(self) -> None:
        while self.futures:
            self.settle(self.futures.pop(self.draw.randrange(len(self.futures))))

    def settle(self, future: Future[Any]) -> None:
        while self.draw.random() < 0.3 and not future.done(0.002):
            pass
        self._settle(future.result)

    def _settle(self, result: Callable[[], object]) -> None:
        try:
            result()
        except (LostResult, BrokenProcessPool) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        # Where the process that forks for an executor was killed, nothing of its work can be run.
        if not isinstance(error, LostResult) and "process that forks" not in str(error):
            raise error
        self.scene.note(journal.LOST)
