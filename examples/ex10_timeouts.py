"""Timeouts: how long a call may wait, in seconds, and what it says then.

`None` waits for ever and 0 not at all. `done` and `wait` answer False at the deadline; whatever
owes a value (`submit`, `result`, the iterator of `map`) raises `Blocked`. A timeout bounds the
call, never the work: that goes on, and its result can still be had. To end the work, see
`ex04_cancel.py`.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from multiprocessing.connection import Connection

from jobserver import Blocked, Jobserver


def receive(connection: Connection) -> str:
    """Hold a slot until the parent sends a word."""
    word: str = connection.recv()
    return word


def main() -> None:
    with Jobserver(slots=1) as js:
        receiver, sender = js.context.Pipe(duplex=False)
        with receiver, sender:
            held = js(receive, receiver)
            start = time.monotonic()

            # Not done yet. `done` looks, and by default does not wait.
            assert not held.done()
            assert not held.wait(timeout=0.1)
            with suppress(Blocked):
                raise AssertionError(held.result(timeout=0.1))

            # The only slot is taken, so nothing more can be submitted in time ...
            with suppress(Blocked):
                raise AssertionError(js.submit(math.sqrt, args=(2.0,), timeout=0.1))
            with suppress(Blocked):
                raise AssertionError(list(js.map(math.sqrt, [(2.0,), (3.0,)], timeout=0.1)))
            # ... except what takes no slot.
            assert js.submit(math.sqrt, args=(4.0,), consume=0, timeout=0).result() == 2

            waited = time.monotonic() - start
            assert waited >= 0.4
            print(f"waited {waited:.1f} s for work that was told to go on only now")

            # The work never knew that anybody was impatient.
            sender.send("at last")
            assert held.result(timeout=60) == "at last"

        # A deadline that makes no sense is refused before anything is submitted.
        for nonsense in (-1.0, math.inf, math.nan):
            with suppress(ValueError):
                raise AssertionError(js.submit(math.sqrt, args=(2.0,), timeout=nonsense))


if __name__ == "__main__":
    main()
