"""What an executor's Future has of work that does not return: as ProcessPoolExecutor has it."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Callable

import pytest

from jobserver import Jobserver, JobserverExecutor, LostResult
from tests import endings
from tests.executor_help import executor_for
from tests.faces import EXECUTORS, JOBSERVERS, Run, face, raised_by
from tests.work import PATIENCE, Gate, add, await_file, getpid, identity


def told(error: BaseException) -> object:
    """What a program can ask of an exception that came from a worker, but for addresses."""
    texts = [re.sub(r"0x[0-9a-f]+", "0x", text) for text in (str(error), repr(error.args))]
    return type(error), texts, type(error.__cause__).__name__.strip("_")


@pytest.mark.parametrize("name", EXECUTORS)
def test_any_exception_arrives_as_itself(method: str, name: str) -> None:
    with face(name, method) as ours, face("peer", method) as theirs:
        for kind in endings.BASE:
            error = raised_by(ours, endings.raise_base, kind)
            assert told(error) == told(raised_by(theirs, endings.raise_base, kind))
            assert "in raise_base" in str(error.__cause__)
        assert ours(add, 1, 2) == 3


def test_the_worker_stays(method: str) -> None:
    with executor_for(method, 1) as executor:
        pid = executor.submit(getpid).result(PATIENCE)
        for kind in endings.BASE:
            with pytest.raises(BaseException, match="from the work"):
                executor.submit(endings.raise_base, kind).result(PATIENCE)
            assert executor.submit(getpid).result(PATIENCE) == pid


@pytest.mark.parametrize("name", EXECUTORS)
def test_an_exception_around_the_call_arrives_as_itself(method: str, name: str) -> None:
    """From its arguments, as they are rebuilt, and its result, as it is pickled."""
    with face(name, method) as run:
        for kind in ("SystemExit", "GeneratorExit", "Own"):
            error = raised_by(run, identity, endings.RaisesWhenLoaded(kind))
            assert type(error).__name__ == kind
            error = raised_by(run, endings.RaisesWhenDumped, kind)
            assert type(error).__name__ == kind
            assert "in __reduce__" in str(error.__cause__)
        assert run(add, 1, 2) == 3


def test_an_interrupted_worker_tells_and_stays(method: str, tmp_path: Path) -> None:
    with executor_for(method, 1) as executor, Gate(tmp_path) as gate:
        mark = tmp_path / "mark"
        future = executor.submit(endings.note_pid_and_pass, str(mark), gate.path)
        await_file(mark)
        pid = int(mark.read_text())
        os.kill(pid, signal.SIGINT)
        error = future.exception(PATIENCE)
        assert type(error) is KeyboardInterrupt
        assert "in note_pid_and_pass" in str(error.__cause__)
        gate.open()


@pytest.mark.parametrize("chunksize", [2, "auto"])
def test_in_a_chunk_it_is_at_its_own_position(chunksize: Any) -> None:
    for kind, expected in endings.BASE.items():
        with executor_for("fork", 1) as executor:
            results = executor.map(
                endings.raise_base_at, [kind] * 4, range(4), [1] * 4, chunksize=chunksize
            )
            if kind != "KeyboardInterrupt":  # which ends its chunk, as in the peer
                assert next(results) == 0
            elif chunksize == "auto":
                next(results, None)
                continue
            with pytest.raises(expected, match="from the work"):
                next(results)


def test_asyncio_sees_what_the_work_raised(method: str) -> None:
    async def main(pool: JobserverExecutor) -> tuple[BaseException]:
        running = asyncio.get_running_loop().run_in_executor(pool, endings.raise_base, "Own")
        return await asyncio.gather(running, return_exceptions=True)

    with executor_for(method, 1) as pool:
        assert [type(error) for error in asyncio.run(main(pool))] == [endings.Own]


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_loss_of_the_work_s_own_is_no_broken_pool(method: str, name: str) -> None:
    with face(name, method, 2) as run:
        error = raised_by(run, endings.lose_a_result)
        assert type(error) is LostResult
        assert not isinstance(error, BrokenProcessPool)
        assert "was killed by SIGKILL" in str(error)


# A Jobserver


@pytest.mark.parametrize("name", JOBSERVERS)
def test_a_jobserver_loses_what_ends_a_process_and_tells_the_rest(method: str, name: str) -> None:
    with face(name, method) as run:
        for kind, expected in endings.BASE.items():
            error = raised_by(run, endings.raise_base, kind)
            if issubclass(expected, (SystemExit, KeyboardInterrupt)):
                assert type(error) is LostResult
                assert f"ended by {kind}('from the work')" in str(error)
                assert str(pickle.loads(pickle.dumps(error))) == str(error)
                assert type(error.__cause__) is expected
            else:
                assert type(error) is expected
                assert "in raise_base" in str(error.__cause__)
        assert run(add, 1, 2) == 3


def test_a_jobserver_s_reused_worker_stays_after_what_ends_no_process(method: str) -> None:
    with Jobserver(method, 1).replace_workers() as js:
        pid = js(getpid).result(PATIENCE)
        for kind, stays in (("GeneratorExit", True), ("Own", True), ("SystemExit", False)):
            with pytest.raises(BaseException, match="from the work"):
                js(endings.raise_base, kind).result(PATIENCE)
            assert (js(getpid).result(PATIENCE) == pid) == stays


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_map_raises_it_at_its_own_position(method: str, chunksize: int) -> None:
    with Jobserver(method, 1).replace_workers() as js:
        for kind in ("GeneratorExit", "CancelledError", "Own"):
            results = js.map(
                endings.raise_base_at, [(kind, n, 1) for n in range(3)], chunksize=chunksize
            )
            assert next(results) == 0
            with pytest.raises(endings.BASE[kind], match="from the work"):
                next(results)
            assert list(results) == [2]


# What cannot be pickled


UNFIT: dict[str, Callable[[Run], object]] = {
    "a lambda as an argument": lambda run: run(identity, lambda: None),
    "a lambda as work": lambda run: run(lambda: None),
    "a lock as an argument": lambda run: run(identity, endings.locked()),
    "an argument that raises": lambda run: run(identity, endings.RaisesWhenDumped("Own error")),
    "a lambda as a result": lambda run: run(endings.a_lambda),
    "a lock as a result": lambda run: run(endings.locked),
    "a result that raises": lambda run: run(endings.RaisesWhenDumped, "Own error"),
    "an exception with a lock": lambda run: run(endings.raise_locked),
}


@pytest.mark.parametrize("name", EXECUTORS)
def test_what_cannot_be_pickled_tells_why(method: str, name: str) -> None:
    with face(name, method) as ours, face("peer", method) as theirs:
        for what, call in UNFIT.items():
            error = raised_by(lambda fn: fn(ours), call)
            assert told(error) == told(raised_by(lambda fn: fn(theirs), call)), what
            hints = getattr(error, "__notes__", [])
            if sys.version_info < (3, 11):
                hints = [str(error.__cause__)]
            assert "not picklable" in hints[-1], what
            shown = "".join(traceback.format_exception(type(error), error, None))
            assert "not picklable" in shown
            assert "Traceback (most recent call last)" in str(error.__cause__)
        assert ours(add, 1, 2) == 3


def test_where_the_pickling_failed_is_told() -> None:
    with executor_for("spawn", 1) as executor:
        given = executor.submit(identity, endings.RaisesWhenDumped("Own error"))
        assert "in __reduce__" in str(given.exception(PATIENCE).__cause__)  # type: ignore[union-attr]
        got = executor.submit(endings.RaisesWhenDumped, "Own error")
        assert "in __reduce__" in str(got.exception(PATIENCE).__cause__)  # type: ignore[union-attr]
        raised = executor.submit(endings.raise_locked).exception(PATIENCE)
        assert raised is not None
        # Not where the pickling failed, but where the work did: that is what is to be mended.
        assert "in raise_locked" in str(raised.__cause__)


def test_in_a_chunk_what_cannot_be_pickled_is_at_its_own_position() -> None:
    with executor_for("fork", 1) as executor:
        results = executor.map(endings.lambda_at, range(3), [1] * 3, chunksize=3)
        assert next(results) == 0
        with pytest.raises((AttributeError, pickle.PicklingError)):
            next(results)


def test_a_jobserver_keeps_its_type_error(method: str) -> None:
    with Jobserver(method, 1).replace_workers() as js:
        with pytest.raises(TypeError, match="not picklable") as caught:
            js(identity, lambda: None)
        assert type(caught.value) is TypeError
        assert isinstance(caught.value.__cause__, (AttributeError, pickle.PicklingError))
        with pytest.raises(RuntimeError, match="not picklable"):
            js(endings.a_lambda).result(PATIENCE)


def test_a_jobserver_s_type_error_comes_back_from_nested_work(method: str) -> None:
    with Jobserver(method, 2) as js:
        with pytest.raises(TypeError, match="not picklable"):
            js(endings.submit_a_lambda, js).result(PATIENCE)
        with JobserverExecutor(js) as executor:
            with pytest.raises(TypeError, match="not picklable"):
                executor.submit(endings.submit_a_lambda, js).result(PATIENCE)
