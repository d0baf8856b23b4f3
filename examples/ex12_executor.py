"""The executor: what `ProcessPoolExecutor` does, on a Jobserver's slots.

`JobserverExecutor` is a `concurrent.futures.Executor`. Its Futures are the standard library's: they
work with `wait`, `as_completed`, asyncio and whatever else expects them. It has one background
thread, so they make progress without being asked.

Made with a number (or nothing), it owns a Jobserver of that many slots. Made with a Jobserver, it
shares that one's slots and leaves it open: a library that wants an executor and work that nests
through the Jobserver then never run more than `slots` at once together.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from jobserver import Jobserver, JobserverExecutor, LostResult


def square(number: int) -> int:
    return number * number


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sum_of_squares(js: Jobserver, numbers: range) -> int:
    """Work that submits work of its own, on the same slots."""
    return sum(js.map(square, [(number,) for number in numbers]))


def receive(connection: Connection) -> str:
    """Hold a slot until the parent sends a word."""
    word: str = connection.recv()
    return word


def owning() -> None:
    with JobserverExecutor(2) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        futures = {executor.submit(square, number): number for number in range(6)}
        for future in concurrent.futures.as_completed(futures):
            assert future.result() == futures[future] ** 2
        assert list(executor.map(square, range(6))) == [0, 1, 4, 9, 16, 25]

        # A killed worker breaks its own Future, and not the pool.
        killed = executor.submit(be_killed)
        error = killed.exception()
        assert isinstance(error, LostResult)
        assert isinstance(error, BrokenProcessPool)
        assert executor.submit(square, 7).result() == 49
        print(executor)


def sharing() -> None:
    with Jobserver(slots=1) as js:
        receiver, sender = js.context.Pipe(duplex=False)
        # Submitted before the executor is made: under fork, fork before there are threads.
        with receiver, sender:
            held = js(receive, receiver)
            with JobserverExecutor(js) as executor:
                # The only slot is taken by work that the executor knows nothing of.
                first = executor.submit(square, 8)
                second = executor.submit(square, 9)
                assert not first.running()
                assert not first.done()
                assert second.cancel()  # pending work never runs once it is cancelled

                sender.send("go on")
                assert held.result() == "go on"
                assert first.result() == 64

                # The handle goes along, and what runs below shares the one slot as well.
                assert executor.submit(sum_of_squares, js, range(4)).result() == 14

        # The Jobserver was lent, not given: it is open still.
        assert js(square, 10).result() == 100
        print(js)


def main() -> None:
    owning()
    sharing()


if __name__ == "__main__":
    main()
