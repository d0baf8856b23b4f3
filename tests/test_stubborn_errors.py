"""Exceptions that refuse attributes arrive as themselves, or as what could not be rebuilt."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import traceback
from typing import Any

import pytest

from jobserver import CallbackRaised, Jobserver
from tests import stubborn
from tests.faces import FACES, face, raised_by
from tests.work import PATIENCE, add, identity


def shown(error: BaseException) -> str:
    """All that Python prints of the exception, causes included."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


@pytest.mark.parametrize("name", FACES)
def test_they_arrive_as_themselves(method: str, name: str) -> None:
    kinds = {
        "frozen": stubborn.Frozen,
        "fields": stubborn.FrozenWithFields,
        "refuses": stubborn.Refuses,
        "cause": stubborn.RefusesCause,
    }
    with face(name, method) as run:
        for kind, expected in kinds.items():
            error = raised_by(run, stubborn.refuse, kind)
            assert type(error) is expected
            assert error.args == stubborn.ERRORS[kind]().args
            if kind != "cause":  # of which it says that there is none
                assert "in refuse" in str(error.__cause__)
            if kind == "fields":
                assert isinstance(error, stubborn.FrozenWithFields)
                assert (error.key, error.codes) == ("a key", (3,))
        assert run(add, 1, 2) == 3


@pytest.mark.parametrize("name", FACES)
def test_what_cannot_be_rebuilt_says_so_with_the_traceback(method: str, name: str) -> None:
    with face(name, method) as run:
        error = raised_by(run, stubborn.refuse, "key")
        assert type(error) is RuntimeError
        assert "not reconstructable" in str(error)
        assert "in refuse" in shown(error)
        assert "FrozenWithFields" in shown(error)
        assert type(error.__cause__) is TypeError


@pytest.mark.parametrize("name", FACES)
def test_a_result_that_raises_one_when_it_is_rebuilt(name: str) -> None:
    with face(name, "fork") as run:
        error = raised_by(run, stubborn.RefusesToLoad)
        assert type(error) is RuntimeError
        assert "not reconstructable" in str(error)
        assert type(error.__cause__) is stubborn.Frozen


@pytest.mark.parametrize("kind", ["unpicklable", "mute"])
def test_one_that_cannot_be_pickled(method: str, kind: str) -> None:
    with Jobserver(method, 1).replace_workers() as js:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not picklable") as caught:
                js(stubborn.refuse, kind).result(PATIENCE)
            assert "in refuse" in shown(caught.value)


# From 3.14 on, pickle itself puts a note on what it passes on, and fails where that is refused.
FROM_PICKLING: tuple[type, ...] = (
    (dataclasses.FrozenInstanceError,) if sys.version_info >= (3, 14) else (stubborn.Frozen,)
)


def test_an_argument_that_raises_one_when_it_is_pickled() -> None:
    for name in ("reused", "owning"):
        with face(name, "spawn") as run:
            error = raised_by(run, identity, stubborn.Unpicklable("a key"))
            assert any(type(part) in FROM_PICKLING for part in (error, error.__cause__))


@pytest.mark.parametrize("chunksize", [1, 2, "auto"])
def test_in_a_map(chunksize: Any) -> None:
    with Jobserver("fork", 2).replace_workers() as js:
        argses = [("fields", number, 1) for number in range(4)]
        results = js.map(stubborn.refuse_at, argses, chunksize=chunksize)
        assert next(results) == 0
        with pytest.raises(stubborn.FrozenWithFields):
            next(results)
        assert list(results) == [2, 3]


def test_a_map_of_arguments_that_raise_one_when_they_are_pickled() -> None:
    with Jobserver("spawn", 1).replace_workers() as js:
        results = js.map(identity, [(stubborn.Unpicklable("a key"),), (1,)])
        with pytest.raises(TypeError, match="not picklable") as caught:
            next(results)
        assert type(caught.value.__cause__) in FROM_PICKLING
        assert list(results) == [1]


def test_below_a_worker(method: str) -> None:
    with Jobserver(method, 2) as js:
        assert js(stubborn.refuse_below, js, "fields").result(PATIENCE) == " ".join(
            itertools.repeat("FrozenWithFields", 2)
        )


def test_from_a_callback_and_from_a_gate() -> None:
    with Jobserver("fork", 1) as js:
        future = js(identity, 1)
        assert future.wait(PATIENCE)
        with pytest.raises(CallbackRaised) as caught:
            future.when_done(stubborn.refuse, "frozen")
        assert type(caught.value.__cause__) is stubborn.Frozen
        with pytest.raises(stubborn.Frozen):
            js.replace_sleep(lambda: stubborn.refuse("frozen"))(identity, 1)
