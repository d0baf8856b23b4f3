"""How work ends otherwise than by returning; without pytest, so that workers start quickly."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any, Callable, NoReturn

from jobserver import Jobserver
from tests.work import PATIENCE, die, identity, pass_gate


class Own(BaseException):
    """Somebody's own."""


class OwnError(Exception):
    """Somebody's own, of the usual kind."""


class Leaves(SystemExit):
    """Of a kind that ends a process."""


BASE: dict[str, type[BaseException]] = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "Own": Own,
    "Leaves": Leaves,
}


def raise_base(kind: str) -> NoReturn:
    raise BASE[kind]("from the work")


def raise_base_at(kind: str, number: int, bad: int) -> int:
    if number == bad:
        raise_base(kind)
    return number


def note_pid_and_pass(mark: str, gate: str) -> None:
    with open(mark + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(mark + ".new", mark)
    pass_gate(gate)


class RaisesWhenLoaded:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return raise_base, (self.kind,)


class RaisesWhenDumped:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> NoReturn:
        if self.kind == "Own error":
            raise OwnError("while dumping")
        raise_base(self.kind)


def lose_a_result() -> object:
    """Lose the result of other work, in this work."""
    with Jobserver("fork", 1) as js:
        return js(die).result(PATIENCE)


def a_lambda() -> Callable[[], None]:
    return lambda: None


def lambda_at(number: int, bad: int) -> Any:
    return a_lambda() if number == bad else number


def locked() -> Any:
    return threading.Lock()


class LockedError(Exception):
    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


def raise_locked() -> NoReturn:
    raise LockedError


def submit_a_lambda(js: Jobserver) -> object:
    return js.replace_workers()(identity, lambda: None).result(PATIENCE)
