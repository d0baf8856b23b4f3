"""Fixtures: the start methods, a bound on hangs, and proof that a test leaves nothing behind."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Optional

import pytest

METHODS = ("fork", "spawn", "forkserver")
GRACE = 30.0  # seconds for workers that are already ending to be gone


_stderr = -1  # as it was before pytest captured what is written to it


def pytest_configure() -> None:
    global _stderr
    if _stderr < 0:
        _stderr = os.dup(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # property_tests imports this hook: added already
        parser.addoption(
            "--start-method",
            action="append",
            choices=METHODS,
            help="only this start method (repeatable); default: all that the platform has",
        )
        parser.addoption(
            "--all",
            action="store_true",
            help="also what is marked thorough, and every parameter under every start method",
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--start-method") or METHODS
        available = multiprocessing.get_all_start_methods()
        metafunc.parametrize("method", [name for name in chosen if name in available])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--all`, keep what meets each case once.

    Every parameter is met under the first start method, and every start method with the first
    parameter; nothing is crossed, and nothing that is marked thorough runs. A test that is named
    on the command line runs as it stands.
    """
    if config.getoption("--all") or any("::" in each for each in config.args):
        return
    firsts: dict[str, tuple[object, object]] = {}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            parameters = dict(item.callspec.params)
            method = parameters.pop("method", None)
            rest = sorted(parameters.items(), key=lambda pair: pair[0])
            test = item.nodeid.partition("[")[0]
            first_method, first_rest = firsts.setdefault(test, (method, rest))
            crossed = method != first_method and not _same(rest, first_rest)
        else:
            crossed = False
        chosen = kept if not crossed and item.get_closest_marker("thorough") is None else left
        chosen.append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def _same(one: object, other: object) -> bool:
    """Whether two lists of parameters are those of one case; some, as arrays, have no `==`."""
    return repr(one) == repr(other)


def pytest_make_parametrize_id(val: object) -> Optional[str]:
    """A name that is the same in every process, so that tests can be shared among several."""
    if " at 0x" not in repr(val):
        return None
    name: object = getattr(val, "__qualname__", type(val).__qualname__)
    return str(name)


def _helpers() -> set[int]:
    """Processes that multiprocessing itself keeps until the interpreter ends."""
    from multiprocessing import forkserver

    return {
        pid
        for pid in (
            forkserver._forkserver._forkserver_pid,  # type: ignore[attr-defined]
            resource_tracker._resource_tracker._pid,  # type: ignore[attr-defined]
        )
        if pid is not None
    }


def children_of(pid: int) -> set[int]:
    """The living and the zombie children of a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.update(int(word) for word in (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _descendants() -> set[int]:
    """Every process below this one, but for multiprocessing's own helpers."""
    helpers = _helpers()
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        try:
            below = children_of(pending.pop())
        except (FileNotFoundError, ProcessLookupError):
            continue
        pending.extend(below)
        found |= below - helpers
    return found


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def _threads() -> set[int]:
    return {thread.native_id or 0 for thread in threading.enumerate()}


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Nothing is freed but what no reference cycle keeps."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _helpers_started() -> None:
    """Start multiprocessing's helpers up front, so that no test is blamed for them."""
    # A shell that starts this in the background has it ignore SIGINT, and all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # So it does with SIGQUIT, and nohup with SIGHUP.
    for name in ("SIGHUP", "SIGQUIT"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    # Nor has whoever runs the tests by make anything to do with how many slots they have.
    os.environ.pop("MAKEFLAGS", None)
    resource_tracker.ensure_running()
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        forkserver.ensure_running()
    # Every test collects garbage twice; what is there by now is none, and need not be looked at.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def hang() -> float:
    """Seconds after which a test hangs: the longest takes a tenth of it with both cores busy."""
    return 240.0


@pytest.fixture(autouse=True)
def nothing_left(_helpers_started: None, hang: float) -> Iterator[None]:
    """Fail a test that leaves a process, a zombie, a descriptor or a thread behind."""
    faulthandler.dump_traceback_later(hang, exit=True, file=_stderr)
    gc.collect()
    before = _descendants(), _descriptors(), _threads()
    yield
    deadline = time.monotonic() + GRACE
    while True:
        gc.collect()
        processes = _descendants() - before[0]
        descriptors = {
            fd: target for fd, target in _descriptors().items() if before[1].get(fd) != target
        }
        threads = _threads() - before[2]
        if not (processes or descriptors or threads) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    faulthandler.cancel_dump_traceback_later()
    commands = {}
    for pid in processes:
        try:
            commands[pid] = Path(f"/proc/{pid}/stat").read_text().split()[:3]
        except OSError:
            continue
    assert not commands, f"processes left behind: {commands}"
    assert not descriptors, f"descriptors left behind: {descriptors}"
    assert not threads, f"threads left behind: {[t.name for t in threading.enumerate()]}"
