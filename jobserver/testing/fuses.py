"""Points of the library at which a process kills itself.

The library knows nothing of them. A point is where a function of it is entered or left; `install`
replaces these functions, in this process and thereby in those that it forks, by ones that look
first whether it is time to die.

A process that is armed draws, for itself and for each process that it forks, whether it will die,
at which points, and at how many passes of them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import random
import signal
from typing import Any, Callable, Final, Optional, Union, cast

from . import journal

# Modules and the functions in them, at whose two ends a process may die.
FUNCTIONS: Final = (
    ("bootstrap", "_become"),
    ("bootstrap", "_end"),
    ("bootstrap", "_run"),
    ("callbacks", "issue_due"),
    ("channel", "ResultChannel.close"),
    ("channel", "ResultChannel.receive"),
    ("commands", "_start"),
    ("crew", "Crew.close"),
    ("crew", "Crew.hire"),
    ("crew", "Crew.part_with"),
    ("crew", "Crew.release"),
    ("crew", "Turn.assign"),
    ("crew", "Turn.poll"),
    ("crew", "Turn.repeat"),
    ("crew", "_Request.send"),
    ("engine", "Engine.drain"),
    ("engine", "Engine.track"),
    ("forker", "Forker.hire"),
    ("forker", "Forker.launch"),
    ("forker", "_read_number"),
    ("forker", "_serve"),
    ("forker", "_write_number"),
    ("forks", "close"),
    ("forks", "open_file"),
    ("forks", "pipe"),
    ("kernel", "OfdKernel.close"),
    ("kernel", "OfdKernel.exclude"),
    ("kernel", "OfdKernel.find"),
    ("kernel", "OfdKernel.leave"),
    ("kernel", "OfdKernel.lock"),
    ("kernel", "OfdKernel.open"),
    ("kernel", "OfdKernel.read"),
    ("kernel", "OfdKernel.reopen"),
    ("kernel", "OfdKernel.share"),
    ("kernel", "OfdKernel.unlock"),
    ("kernel", "OfdKernel.waiting"),
    ("kernel", "OfdKernel.write"),
    ("launch", "Child.close"),
    ("launch", "Child.poll"),
    ("launch", "ContextLauncher._start"),
    ("launch", "ContextLauncher.hire"),
    ("launch", "ContextLauncher.launch"),
    ("launch", "Served.close"),
    ("launch", "Served.poll"),
    ("memory", "blocks"),
    ("memory", "receive_files"),
    ("memory", "send_files"),
    ("memory", "store"),
    ("parcels", "pickled"),
    ("resources", "Resources.launch"),
    ("run", "Run._reap"),
    ("run", "Run._return_slot"),
    ("serving", "_close"),
    ("serving", "receive"),
    ("serving", "_run"),
    ("serving", "serve_inherited"),
    ("serving", "serve_received"),
    ("slots", "SlotPool.audit"),
    ("slots", "SlotPool.give_back"),
    ("slots", "SlotPool.grant"),
    ("slots", "SlotPool.hand_over"),
    ("slots", "SlotPool.lend"),
    ("slots", "SlotPool.relieve"),
    ("slots", "SlotPool.take"),
    ("slots", "SlotPool.withdraw"),
    ("wire", "Packet.send"),
    ("worker", "answer"),
    ("worker", "call"),
    ("worker", "revise_environ"),
    ("worker", "run_inherited"),
    ("worker", "run_received"),
)

LABELS: Final = tuple(
    f"{module}.{name} {end}" for module, name in FUNCTIONS for end in ("entered", "left")
)

_DRAWN: Final = (1, 3, 10)  # points at which a process may die
_PASSES: Final = 3  # at the latest it dies at this pass of a point

_PACKAGE: Final = __name__.rpartition(".testing.")[0]
_installed = False
_fuse: Optional[_Fuse] = None


class _Fuse:
    """Whether, where and when this process dies; and what its forked children draw."""

    def __init__(self, path: str, lineage: str, odds: float, *, spared: bool) -> None:
        self.path = path
        self.lineage = lineage
        self.odds = odds
        self.forked = 0
        draw = random.Random(lineage)
        # A process passes few of the points. With many drawn it dies soon; with one, perhaps at a
        # point that is hardly ever passed.
        number = draw.choice(_DRAWN) if draw.random() < odds and not spared else 0
        self.passes = {label: draw.randint(1, _PASSES) for label in draw.sample(LABELS, number)}

    def passing(self, label: str) -> None:
        if label in self.passes:
            self.passes[label] -= 1
            if not self.passes[label]:
                journal.note(self.path, journal.KILLED, label)
                os.kill(os.getpid(), signal.SIGKILL)

    def of_child(self) -> _Fuse:
        """What the child draws that is being forked."""
        return _Fuse(self.path, f"{self.lineage}.{self.forked}", self.odds, spared=False)


def arm(path: str, lineage: str, odds: float, *, spared: bool = False) -> None:
    """From now on, this process and those forked from it die with these odds.

    `path` is the journal where they note it; `lineage` seeds what is drawn. One that is spared
    does not die itself.
    """
    global _fuse
    install()
    _fuse = _Fuse(path, lineage, odds, spared=spared)


def disarm() -> None:
    """No more of that, in this process and those forked from it later."""
    global _fuse
    _fuse = None


def install() -> None:
    """Replace the functions, once in a process."""
    global _installed
    if _installed:
        return
    _installed = True
    for module, name in FUNCTIONS:
        owner, attribute = find(module, name)
        kept = cast("object", inspect.getattr_static(owner, attribute))
        setattr(owner, attribute, _with_points(f"{module}.{name}", kept))
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def find(module: str, name: str) -> tuple[Any, str]:
    """The module or the class of a function, and its name there."""
    owner: Any = importlib.import_module(f"{_PACKAGE}.{module}")
    *classes, attribute = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, attribute


def _with_points(name: str, kept: object) -> object:
    if isinstance(kept, (staticmethod, classmethod)):
        wrapped = cast("Union[staticmethod[..., object], classmethod[Any, ..., object]]", kept)
        return type(wrapped)(_passing(name, wrapped.__func__))
    return _passing(name, cast("Callable[..., object]", kept))


def _passing(name: str, function: Callable[..., object]) -> Callable[..., object]:
    entered, left = f"{name} entered", f"{name} left"

    @functools.wraps(function)
    def passing(*args: Any, **kwargs: Any) -> object:
        _pass(entered)
        try:
            return function(*args, **kwargs)
        finally:
            _pass(left)

    return passing


def _pass(label: str) -> None:
    if _fuse is not None:
        _fuse.passing(label)


def _before_fork() -> None:
    if _fuse is not None:
        _fuse.forked += 1


def _after_fork() -> None:
    global _fuse
    if _fuse is not None:
        _fuse = _fuse.of_child()
