"""A program in which every single descriptor counts; run it in an interpreter of its own."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Callable, Optional, TypeVar

from jobserver import Future, Jobserver, LostResult
from tests.work import PATIENCE, Gate, add, pass_gate

T = TypeVar("T")

ENOUGH = 10  # submissions that succeed in a row: then the limit is not felt any more


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextlib.contextmanager
def limit(number: int) -> Generator[None, None, None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check(js: Jobserver, slots: int, before: dict[int, str], number: int) -> None:
    """Nothing of the failed attempt is there: not a descriptor, not a Future, not a slot less."""
    gc.collect()
    now = descriptors()
    assert now == before, f"limit {number}: {set(now.items()) ^ set(before.items())}"
    assert "tracked=0" in repr(js), f"limit {number}: {js!r}"
    futures = [js.submit(add, args=(n, 1), timeout=0) for n in range(slots)]
    assert [future.result(PATIENCE) for future in futures] == list(range(1, slots + 1))


def attempt(make: Callable[[], T], number: int) -> Optional[T]:
    """What was made under the limit, or None when it was refused in the right way."""
    try:
        with limit(number):
            return make()
    except OSError as error:
        check_refusal(error, number)
        return None


def check_refusal(error: OSError, number: int) -> None:
    assert error.errno == errno.EMFILE, f"limit {number}: {error!r}"
    assert "open files" in str(error), f"limit {number}: {error!r}"


def submissions(method: str, slots: int) -> None:
    """Submit under every limit, from the smallest to one that is not felt."""
    js = Jobserver(method, slots)
    assert js(add, 1, 2).result(PATIENCE) == 3
    assert js(add, 1, 2).result(PATIENCE) == 3
    before = descriptors()
    succeeded = failed = 0
    number = 0
    while succeeded < ENOUGH:
        future = attempt(lambda: js.submit(add, args=(1, 2), timeout=PATIENCE), number)
        if future is None:
            assert not succeeded, f"limit {number} fails though smaller ones did not"
            failed += 1
        else:
            succeeded += 1
            # The worker inherits the limit, under which it may be unable to do anything.
            with contextlib.suppress(LostResult, OSError):
                assert future.result(PATIENCE) == 3
        del future
        check(js, slots, before, number)
        number += 1
        assert number < 1000
    assert failed


def constructions(method: str) -> None:
    """Make Jobservers under every limit, from the smallest to one that is not felt."""
    js = Jobserver(method, 1)
    assert js(add, 1, 2).result(PATIENCE) == 3
    del js
    gc.collect()
    before = descriptors()
    succeeded = failed = number = 0
    while succeeded < ENOUGH:
        made = attempt(lambda: Jobserver(method, 1), number)
        if made is None:
            assert not succeeded, f"limit {number} fails though smaller ones did not"
            failed += 1
        else:
            succeeded += 1
            assert made(add, 1, 2).result(PATIENCE) == 3
        del made
        gc.collect()
        now = descriptors()
        assert now == before, f"limit {number}: {set(now.items()) ^ set(before.items())}"
        number += 1
    assert failed


def many_at_once(method: str, slots: int) -> None:
    """Submit until the descriptors are used up; go on when some are back."""
    js = Jobserver(method, slots)
    assert js(add, 1, 2).result(PATIENCE) == 3
    for number in range(3):
        before = descriptors()
        refused = False
        futures: list[Future[Optional[int]]] = []
        with tempfile.TemporaryDirectory() as directory:
            # Held, lest what has finished make room for more.
            with Gate(Path(directory)) as gate, limit(max(descriptors()) + 12):
                work = gate.path, number
                try:
                    futures.extend(js.submit(pass_gate, args=work, timeout=0) for _ in range(slots))
                except OSError as error:
                    check_refusal(error, max(before) + 12)
                    refused = True
                gate.open()
                for future in futures:
                    # Waiting needs no descriptor that is not there.
                    assert future.wait(PATIENCE)
            assert refused, "the descriptors were not used up"
        del futures, future
        gc.collect()
        assert descriptors() == before
    check(js, slots, before, 0)
