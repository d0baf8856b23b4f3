"""Waiting: work that waits for its own nested calls does not stop a full tree.

Each piece of work below holds one of two slots and has calls of its own in an executor on the same
slots. While it waits, it computes nothing, so those calls may run on its slot:

* an asyncio loop waits while it is in its selector, and the library sees that;
* any other wait can be declared: `with js.waiting():`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future

from jobserver import Jobserver, JobserverExecutor

SLOTS = 2


def square(number: int) -> int:
    return number * number


def in_a_loop(js: Jobserver, count: int) -> int:
    """Await nested calls in an event loop."""

    async def gather(executor: JobserverExecutor) -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, square, number) for number in range(count)]
        return await asyncio.gather(*calls)

    with JobserverExecutor(js) as executor:
        return sum(asyncio.run(gather(executor)))


def through_a_pipe(js: Jobserver, count: int) -> int:
    """Be told of each nested call through a pipe: nobody can see that, so it is declared."""
    read, write = os.pipe()
    results: list[int] = []

    def tell(future: Future[int]) -> None:
        results.append(future.result())
        os.write(write, b".")

    with JobserverExecutor(js) as executor:
        for number in range(count):
            executor.submit(square, number).add_done_callback(tell)
        with js.waiting():
            for _ in range(count):
                os.read(read, 1)
    os.close(read)
    os.close(write)
    return sum(results)


def main() -> None:
    with Jobserver(slots=SLOTS) as js:
        for work in (in_a_loop, through_a_pipe):
            # As many as there are slots: nothing is left for their nested calls.
            outer = [js(work, js, 4) for _ in range(SLOTS)]
            assert [future.result() for future in outer] == [0 + 1 + 4 + 9] * SLOTS
            print(f"{work.__name__}: {SLOTS} slots, {SLOTS} pieces of work that wait for 4 calls")
    assert threading.active_count() == 1  # a Jobserver has no thread


if __name__ == "__main__":
    main()
