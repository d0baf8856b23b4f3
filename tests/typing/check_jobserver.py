"""Jobserver: what its calls give, and which of them are errors."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import contextlib
import copy
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn, Optional

from typing_extensions import assert_type

from jobserver import Future, Jobserver


def area(width: int, height: float = 1.0) -> float:
    return width * height


def name_of(number: int) -> str:
    return str(number)


def never() -> NoReturn:
    raise ValueError


def keywords(*, fn: int, timeout: str) -> bytes:
    return f"{fn}{timeout}".encode()


def construct() -> None:
    assert_type(Jobserver(), Jobserver)
    Jobserver("fork", 2)
    Jobserver(context="spawn", slots=None)
    Jobserver(multiprocessing.get_context(), 1)
    Jobserver(multiprocessing.get_context("forkserver"), 1)
    assert_type(Jobserver.from_environ(), Jobserver)
    assert_type(Jobserver.from_environ("spawn"), Jobserver)
    assert_type(Jobserver().slots, Optional[int])
    Jobserver.from_environ(slots=2)  # type: ignore[call-arg]
    Jobserver(3)  # type: ignore[arg-type]
    Jobserver(slots="2")  # type: ignore[arg-type]
    Jobserver(workers=2)  # type: ignore[call-arg]


def call(js: Jobserver) -> None:
    assert_type(js(area, 1), Future[float])
    assert_type(js(area, 1, height=2.0), Future[float])
    assert_type(js(name_of, number=1), Future[str])
    assert_type(js(keywords, fn=1, timeout="s"), Future[bytes])
    assert_type(js(lambda: 1), Future[int])
    js(area)  # type: ignore[call-arg]
    js(area, "1")  # type: ignore[arg-type]
    js(area, 1, 2.0, 3)  # type: ignore[call-arg]
    js(area, 1, depth=2)  # type: ignore[call-arg]
    js(keywords, fn="1", timeout="s")  # type: ignore[arg-type]
    js(3)  # type: ignore[arg-type]
    js(fn=area)  # type: ignore[call-arg]


def submit(js: Jobserver) -> None:
    assert_type(js.submit(area, args=(1,)), Future[float])
    assert_type(js.submit(area, args=[1], kwargs={"height": 2.0}, timeout=1), Future[float])
    assert_type(js.submit(name_of, args=iter([1]), consume=0, timeout=None), Future[str])
    js.submit(3)  # type: ignore[arg-type]
    js.submit(area, args=3)  # type: ignore[arg-type]
    js.submit(area, kwargs=[1])  # type: ignore[arg-type]
    js.submit(area, timeout="1")  # type: ignore[arg-type]
    js.submit(area, slots=1)  # type: ignore[call-arg]


def result(js: Jobserver) -> None:
    future = js(area, 1)
    assert_type(future.result(), float)
    assert_type(future.result(1), float)
    assert_type(future.result(timeout=None), float)
    assert_type(future.done(), bool)
    assert_type(future.done(timeout=1.5), bool)
    assert_type(future.wait(), bool)
    assert_type(future.wait(None, signal=15), bool)
    future.result("1")  # type: ignore[arg-type]
    number: str = future.result()  # type: ignore[assignment]
    del number


def when_done(js: Jobserver) -> None:
    future = js(area, 1)
    assert_type(future.when_done(name_of, 1), int)
    assert_type(future.when_done(keywords, fn=1, timeout="s"), int)
    future.when_done(name_of)  # type: ignore[call-arg]
    future.when_done(name_of, "1")  # type: ignore[arg-type]
    future.when_done(3)  # type: ignore[arg-type]


def map_(js: Jobserver) -> None:
    assert_type(js.map(area, [(1,), (2, 3.0)]), Iterator[float])
    assert_type(js.map(name_of, kwargses=[{"number": 1}]), Iterator[str])
    assert_type(js.map(area, [[1]], [{"height": 1.0}], timeout=1.0, chunksize=2), Iterator[float])
    assert_type(next(js.map(name_of, iter([(1,)]), buffersize=3)), str)
    js.map(area, [1])  # type: ignore[list-item]
    js.map(area, kwargses=[1])  # type: ignore[list-item]
    assert_type(js.map(area, [(1,)], chunksize="auto", buffersize=2), Iterator[float])
    js.map(area, [], chunksize="1")  # type: ignore[arg-type]
    js.map(area, [], chunksize=None)  # type: ignore[arg-type]


def settings(js: Jobserver) -> None:
    def gate() -> Optional[float]:
        return None

    def text() -> str:
        return ""

    assert_type(js.revise_env({"NAME": "value", "OTHER": None}), Jobserver)
    assert_type(js.revise_env([("NAME", "value"), ("OTHER", None)]), Jobserver)
    assert_type(js.replace_preexec(area, 1, height=2.0), Jobserver)
    assert_type(js.replace_preexec(contextlib.nullcontext, 1), Jobserver)
    assert_type(js.replace_sleep(gate), Jobserver)
    assert_type(js.replace_sleep(lambda: None), Jobserver)
    assert_type(js.replace_sleep(lambda: 0.5), Jobserver)
    assert_type(copy.copy(js), Jobserver)
    js.revise_env({"NAME": 1})  # type: ignore[arg-type]
    js.replace_preexec(area)  # type: ignore[call-arg]
    js.replace_preexec(area, "1")  # type: ignore[arg-type]
    js.replace_sleep(text)  # type: ignore[arg-type]
    js.context = None  # type: ignore[misc,assignment]


def block() -> None:
    with Jobserver("fork", 1) as js:
        assert_type(js, Jobserver)
        assert_type(js(never), Future[NoReturn])
        with js.waiting() as nothing:
            assert_type(nothing, None)
        js.reclaim_resources()
        js.drain()
        js.drain(timeout=1.5)
        js.drain("1")  # type: ignore[arg-type]


def run(js: Jobserver) -> None:
    assert_type(js.run(["make"]), CompletedProcess[bytes])
    assert_type(js.run("make", shell=True, cwd="x", check=True), CompletedProcess[bytes])
    assert_type(js.run([Path("make"), b"all"], input=b"", timeout=1), CompletedProcess[bytes])
    assert_type(js.run(["make"], text=True, input="y"), CompletedProcess[str])
    assert_type(js.run(["make"], encoding="utf-8"), CompletedProcess[str])
    assert_type(js.run(["make"], errors="replace", style="pipe"), CompletedProcess[str])
    assert_type(js.run(["make"], universal_newlines=True), CompletedProcess[str])
    assert_type(js.run(["make"], universal_newlines=False), CompletedProcess[bytes])
    assert_type(js.run(["make"], input=bytearray(), env={b"A": Path()}), CompletedProcess[bytes])
    js.run(["make"], universal_newlines=True, input=b"y")  # type: ignore[call-overload]
    js.run(["make"], input="y")  # type: ignore[call-overload]
    js.run(["make"], text=True, input=b"y")  # type: ignore[call-overload]
    js.run(["make"], style="named")  # type: ignore[call-overload]
    js.run(["make"], cores=2)  # type: ignore[call-overload]
    js.run()  # type: ignore[call-overload]


def share(js: Jobserver) -> None:
    with js.share() as shared:
        assert_type(shared.env, dict[str, str])
        assert_type(shared.pass_fds, tuple[int, ...])
    with js.share("fifo"):
        pass
    js.share("named")  # type: ignore[arg-type]
