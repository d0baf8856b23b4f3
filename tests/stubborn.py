"""Exceptions that refuse attributes; without pytest, so that a spawned worker starts quickly."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from jobserver import Jobserver, JobserverExecutor
from tests.work import PATIENCE


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Nothing there."""


@dataclasses.dataclass(frozen=True)
class FrozenWithFields(Exception):
    key: str
    codes: tuple[int, ...] = (1, 2)


class Refuses(Exception):
    """Takes what its own constructor sets, and nothing else."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        super().__init__(key)
        BaseException.__setattr__(self, "key", key)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} cannot be set")


class RefusesCause(Exception):
    """Its cause, context and traceback are what it says."""

    __cause__ = property(lambda self: None)
    __context__ = property(lambda self: None)
    __traceback__ = property(lambda self: None)


@dataclasses.dataclass(frozen=True)
class Unpicklable(Exception):
    key: object

    def __reduce__(self) -> NoReturn:
        raise Frozen


class UnpicklableWithoutRepr(Exception):
    def __reduce__(self) -> NoReturn:
        raise self

    def __repr__(self) -> str:
        raise self

    __str__ = __repr__


ERRORS: dict[str, Any] = {
    "frozen": Frozen,
    "fields": lambda: FrozenWithFields("a key", (3,)),
    "refuses": lambda: Refuses("a key"),
    "cause": lambda: RefusesCause("why"),
    "key": lambda: FrozenWithFields(key="a keyword, which no pickle of an exception has"),
    "unpicklable": lambda: Unpicklable("a key"),
    "mute": UnpicklableWithoutRepr,
}


def refuse(name: str) -> NoReturn:
    error = ERRORS[name]()
    raise error


def refuse_at(name: str, number: int, bad: int) -> int:
    if number == bad:
        refuse(name)
    return number


def refuse_below(js: Jobserver, name: str) -> str:
    """What comes of it here, in a worker that itself has an executor or a Jobserver."""
    told = []
    with JobserverExecutor(js) as executor:
        for wait in (executor.submit(refuse, name).result, js(refuse, name).result):
            try:
                wait(PATIENCE)
            except Exception as error:
                told.append(type(error).__name__)
    return " ".join(told)


class RefusesToLoad:
    """Raises such an exception when it is rebuilt."""

    def __reduce__(self) -> tuple[object, ...]:
        return refuse, ("frozen",)
