"""What the library has in hand satisfies the Protocols of its seams."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import time
from typing import Optional

from typing_extensions import assert_type

from jobserver import Future, Jobserver
from jobserver.channel import ResultChannel
from jobserver.launch import Child, ContextLauncher, Served
from jobserver.poller import KernelPoller
from jobserver.protocols import Channel, Clock, FutureLike, Launcher, Poller, SlotSource, Worker
from jobserver.slots import SlotPool


def clocks() -> list[Clock]:
    return [time.monotonic, time.perf_counter]


def not_a_clock() -> Clock:
    return time.ctime  # type: ignore[return-value]


def slots(pool: SlotPool) -> SlotSource:
    return pool


def pollers(poller: KernelPoller) -> Poller:
    return poller


def channels(channel: ResultChannel) -> Channel:
    return channel


def launchers(launcher: ContextLauncher) -> Launcher:
    return launcher


def workers(child: Child, served: Served) -> list[Worker]:
    return [child, served]


def not_a_worker(channel: ResultChannel) -> Worker:
    return channel  # type: ignore[return-value]


def futures(js: Jobserver) -> FutureLike[float]:
    future: FutureLike[float] = js(abs, 1.5)
    assert_type(future.result(), float)
    return future


def covariant(narrow: Future[int]) -> FutureLike[object]:
    future: FutureLike[int] = narrow
    return future


def not_contravariant(wide: FutureLike[object]) -> FutureLike[int]:
    return wide  # type: ignore[return-value]


class Scripted:
    """A double of a Future, as a user's test may want one."""

    def done(self, timeout: Optional[float] = 0) -> bool:
        return timeout is None

    def wait(self, timeout: Optional[float] = None, *, signal: Optional[int] = None) -> bool:
        return timeout is None and signal is None

    def result(self, timeout: Optional[float] = None) -> int:
        return 0 if timeout is None else 1

    def when_done(self, fn: object, /, *args: object, **kwargs: object) -> int:
        return len(args) + len(kwargs) + (fn is None)


def doubles() -> FutureLike[int]:
    return Scripted()
