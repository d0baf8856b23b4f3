"""Work that waits for its own nested work by other means than the Futures' own."""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
import time
from typing import Any, Callable

from jobserver import Jobserver, JobserverExecutor
from tests.trees import Log, bound_this_process
from tests.work import await_file, identity, pass_gate, touch

Futures = list["concurrent.futures.Future[int]"]


def _by_waiting(executor: JobserverExecutor, futures: Futures) -> None:
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()  # a wait that is not seen from outside
    with executor.waiting():
        for future in futures:
            future.add_done_callback(ended.put)
        for _ in futures:
            ended.get()


def _by_wrapped_futures(executor: JobserverExecutor, futures: Futures) -> None:
    import asyncio

    async def gather() -> None:
        await asyncio.gather(*map(asyncio.wrap_future, futures))

    asyncio.run(gather())


def _by_run_in_executor(executor: JobserverExecutor, futures: Futures) -> None:
    import asyncio

    async def gather() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, identity, number) for number in range(3)]
        assert await asyncio.gather(*calls) == [0, 1, 2]

    asyncio.run(gather())
    concurrent.futures.wait(futures)


def _by_semaphore(executor: JobserverExecutor, futures: Futures) -> None:
    ended = threading.Semaphore(0)
    for future in futures:
        future.add_done_callback(lambda _: ended.release())
    for _ in futures:
        ended.acquire()


def _by_queue(executor: JobserverExecutor, futures: Futures) -> None:
    ended: queue.Queue[object] = queue.Queue()
    for future in futures:
        future.add_done_callback(ended.put)
    for _ in futures:
        ended.get()


def _by_polling(executor: JobserverExecutor, futures: Futures) -> None:
    while not all(future.done() for future in futures):
        time.sleep(0.01)


def _by_polling_all(executor: JobserverExecutor, futures: Futures) -> None:
    while sum(future.done() for future in futures) < len(futures):
        time.sleep(0.2)


def _by_polling_without_a_pause(executor: JobserverExecutor, futures: Futures) -> None:
    while not all(future.done() for future in futures):
        pass


def _by_polling_results(executor: JobserverExecutor, futures: Futures) -> None:
    for future in futures:
        while True:
            try:
                future.result(timeout=0)
            except concurrent.futures.TimeoutError:
                time.sleep(0.01)
            else:
                break


def _by_polling_wait(executor: JobserverExecutor, futures: Futures) -> None:
    while concurrent.futures.wait(futures, timeout=0).not_done:
        time.sleep(0.01)


def _in_a_thread(executor: JobserverExecutor, futures: Futures) -> None:
    thread = threading.Thread(target=_by_semaphore, args=(executor, futures))
    thread.start()
    thread.join()


MEANS: dict[str, Callable[[JobserverExecutor, Futures], None]] = {
    "waiting": _by_waiting,
    "wrap_future": _by_wrapped_futures,
    "run_in_executor": _by_run_in_executor,
    "a semaphore": _by_semaphore,
    "a queue": _by_queue,
    "polling": _by_polling,
    "polling all": _by_polling_all,
    "polling without a pause": _by_polling_without_a_pause,
    "polling results": _by_polling_results,
    "polling wait": _by_polling_wait,
    "a thread": _in_a_thread,
}


class Warnings(logging.Handler):
    """What is said above DEBUG on the logger of the library."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []
        logging.getLogger("jobserver").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def fan_out(js: Jobserver, count: int, means: str) -> tuple[list[int], list[str]]:
    """Nest on the slots of the tree, and wait by some means; what came of it, and warnings."""
    bound_this_process()
    warnings = Warnings()
    with JobserverExecutor(js) as executor:
        futures = [executor.submit(identity, number) for number in range(count)]
        MEANS[means](executor, futures)
        assert all(future.done() for future in futures), "it has not waited"
        return [future.result() for future in futures], warnings.texts


def wait_unseen(
    js: Jobserver, count: int, still: float, own: str = "", other: str = ""
) -> tuple[list[int], list[str], float]:
    """As `fan_out`, but nobody can see that it waits; and how many seconds that took.

    `own` is a file that it makes first, and `other` one that it waits for: then the tree is full.
    """
    bound_this_process()
    if own:
        touch(own)
        await_file(other)
    warnings = Warnings()
    _set_last_resort(still)
    executor = JobserverExecutor(js)
    begun = time.monotonic()
    futures = [executor.submit(identity, number) for number in range(count)]
    ended: list[object] = []
    for future in futures:
        future.add_done_callback(ended.append)
    while len(ended) < count:
        time.sleep(0.01)
    return [future.result() for future in futures], warnings.texts, time.monotonic() - begun


def _set_last_resort(still: float) -> None:
    from jobserver import lending

    vars(lending)["_STILL"] = still


def compute(js: Jobserver, seconds: float, still: float, means: str) -> tuple[int, bool]:
    """Compute beside pending work; its result, and whether it ended before it was waited for."""
    bound_this_process()
    _set_last_resort(still)
    with JobserverExecutor(js) as executor:
        future = executor.submit(identity, 1)
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        if means == "in a loop":
            _compute_in_a_loop(executor, seconds)
        else:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                sum(range(100_000))
                if means == "asking at times":
                    future.done()
                    [each.done() for each in (future, future)]
                if means == "in another thread":
                    thread = threading.Thread(target=_spin, args=(seconds,))
                    thread.start()
                    ended.wait(seconds)
                    thread.join()
        early = ended.is_set()
        return future.result(), early


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def _compute_in_a_loop(executor: JobserverExecutor, seconds: float) -> None:
    """A loop that awaits work computes, so it is not in its selector."""
    import asyncio

    async def go() -> None:
        future = asyncio.get_running_loop().run_in_executor(executor, identity, 2)
        time.sleep(seconds)
        future.cancel()

    asyncio.run(go())


def hold(log: Log, mark: str, gate: str) -> str:
    bound_this_process()
    with log.computing():
        touch(mark)
        pass_gate(gate)
    return "held"


def leave_a_block(js: Jobserver, log: Log, marks: list[str], gate: str, inner: bool) -> bool:
    """Wait in a block until nested work has begun, and go on; whether that had ended by then."""
    bound_this_process()
    begun, left = marks
    with JobserverExecutor(js) as executor:
        with log.computing():
            with log.blocked():
                future = executor.submit(hold, log, begun, gate)
                with js.waiting():
                    with executor.waiting():
                        await_file(begun)
                    if inner:
                        touch(left)  # the inner block has not waited
                        future.result()
            touch(left)
            return future.done()


def wait_in_threads(js: Jobserver, log: Log, count: int) -> list[int]:
    """So many threads wait at once, for as many pieces of work."""
    bound_this_process()
    with JobserverExecutor(js) as executor:
        futures = [executor.submit(compute_briefly, log, number) for number in range(count)]

        def wait(future: concurrent.futures.Future[int]) -> None:
            with js.waiting():
                while not future.done():
                    time.sleep(0.001)

        threads = [threading.Thread(target=wait, args=(future,)) for future in futures]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [future.result() for future in futures]


def compute_briefly(log: Log, number: int) -> int:
    with log.computing():
        time.sleep(0.02)
    return number


def submit_in_a_thread(js: Jobserver, timeout: float) -> int:
    """A thread submits with a timeout while this one says that it computes nothing."""
    bound_this_process()
    results: list[Any] = []

    def submit() -> None:
        results.append(js.submit(identity, args=(3,), timeout=timeout).result())

    thread = threading.Thread(target=submit)
    with js.waiting():
        thread.start()
        thread.join()
    return int(results[0])


def raise_in_a_block(js: Jobserver) -> None:
    bound_this_process()
    with JobserverExecutor(js) as executor, js.waiting():
        future = executor.submit(identity, 4)
        while not future.done():
            time.sleep(0.001)
        raise KeyError("in a block")


def beat(js: Jobserver, begun: str, gate: str) -> int:
    """A loop goes on with its other tasks while nested work runs on the slot of this process."""
    import asyncio

    bound_this_process()

    async def go() -> int:
        loop = asyncio.get_running_loop()
        with JobserverExecutor(js) as executor:
            future = loop.run_in_executor(executor, touch_and_pass, begun, gate)
            beats = 0
            while not await asyncio.to_thread(_exists, begun):
                pass
            for _ in range(20):
                await asyncio.sleep(0.001)
                beats += not future.done()
            open_gate(gate)
            await future
            return beats

    return asyncio.run(go())


def touch_and_pass(begun: str, gate: str) -> None:
    touch(begun)
    pass_gate(gate)


def _exists(path: str) -> bool:
    import os

    return os.path.exists(path)


def open_gate(path: str) -> None:
    with open(path, "wb") as gate:
        gate.write(b".")
