"""A killed worker: the loss of one Future, and of nothing else.

A worker may end without a result: killed from outside, by the kernel when memory runs out, by a
crash in C code, or because the work ends its own process. `result()` of that one Future then
raises `LostResult`, which knows the worker's `pid` and `exitcode` and says in words what happened.
The slot comes back, other work goes on, and so does the Jobserver.
"""

from __future__ import annotations

import os
import signal
import sys

from jobserver import Future, Jobserver, LostResult


def square(number: int) -> int:
    return number * number


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def loss(future: Future[None]) -> LostResult:
    """The LostResult that this Future raises."""
    try:
        future.result()
    except LostResult as lost:
        return lost
    raise AssertionError("the worker survived")


def main() -> None:
    with Jobserver(slots=2) as js:
        squares = [js(square, 2)]
        killed = js(be_killed)
        squares.append(js(square, 3))
        lost = loss(killed)
        assert lost.exitcode == -signal.SIGKILL  # negative: the number of a signal
        assert f"worker {lost.pid} was killed by SIGKILL" in str(lost)
        print(lost)

        # The end of the process is the end of the work, even without an error.
        ended = loss(js(os._exit, 3))
        assert ended.exitcode == 3
        print(ended)

        # sys.exit() ends the worker too: it is no exception of the work, but its cause is known.
        left = loss(js(sys.exit, 4))
        assert isinstance(left.__cause__, SystemExit)

        # The neighbours noticed nothing, and both slots are there still.
        squares += [js.submit(square, args=(number,), timeout=60) for number in (4, 5)]
        assert [future.result() for future in squares] == [4, 9, 16, 25]


if __name__ == "__main__":
    main()
