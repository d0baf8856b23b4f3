"""Cancelling: send running work a signal, and wait for it.

`future.wait(signal=S)` sends S to the worker if it still runs, and then waits as `wait()` does.
The work decides what the signal means, as any process does. By default SIGTERM kills: the Future
reports `LostResult`. Work that handles it may tidy up, and even return what it has so far.
"""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection

from jobserver import Jobserver, LostResult


def count(started: Connection) -> int:
    """Count for ever."""
    started.send("counting")
    number = 0
    while True:
        number += 1


def count_until_cancelled(started: Connection) -> int:
    """Count until SIGTERM, and return how far that was."""
    number = 0
    try:
        # As Ctrl-C does: raise KeyboardInterrupt.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        started.send("counting")
        while True:
            number += 1
    except KeyboardInterrupt:
        return number


def main() -> None:
    with Jobserver(slots=2) as js:
        receiver, sender = js.context.Pipe(duplex=False)
        with receiver, sender:
            # A signal to a worker that is still starting is legal too; but here it shall count.
            hard = js(count, sender)
            assert receiver.recv() == "counting"
            soft = js(count_until_cancelled, sender)
            assert receiver.recv() == "counting"

        assert not hard.done()
        assert not soft.done()
        assert hard.wait(signal=signal.SIGTERM)
        assert soft.wait(signal=signal.SIGTERM)

        try:
            hard.result()
        except LostResult as lost:
            assert lost.exitcode == -signal.SIGTERM  # negative: the number of a signal
            print(lost)
        else:
            raise AssertionError("counted for ever")
        print("the other had counted to", soft.result())

        # Cancelling what has already ended is no error and changes nothing.
        number = soft.result()
        assert soft.wait(signal=signal.SIGTERM)
        assert soft.result() == number


if __name__ == "__main__":
    main()
