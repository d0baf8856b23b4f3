"""Callbacks: act when work is done, and learn of it when that goes wrong.

`future.when_done(fn, ...)` calls `fn` once, in the process that submitted, inside whichever call
first finds the work done; callbacks run in order of registration. The slot is back by then, so a
callback may submit more work.

A callback that raises is not silenced: the call that ran it raises `CallbackRaised`, whose `seqno`
is the number that `when_done` returned and whose cause is the error. The callbacks after it run
when the Future is asked again. The work's own result is untouched.
"""

from __future__ import annotations

import warnings
from contextlib import suppress

from jobserver import CallbackRaised, Future, Jobserver


def square(number: int) -> int:
    return number * number


def fail(reason: str) -> None:
    raise OSError(reason)


def main() -> None:
    with Jobserver(slots=1) as js:
        # In order, with their own arguments; at once when the Future is already done.
        seen: list[str] = []
        future = js(square, 3)
        assert future.when_done(seen.append, "first") == 0
        assert future.when_done(seen.append, "second") == 1
        assert future.result() == 9
        assert future.when_done(seen.append, "at once") == 2
        assert seen == ["first", "second", "at once"]

        # One slot is enough for a chain: the slot is back before the callback runs.
        chain: list[Future[int]] = []

        def square_again(earlier: Future[int]) -> None:
            chain.append(js(square, earlier.result()))

        future = js(square, 3)
        future.when_done(square_again, future)
        assert future.wait()
        assert chain[0].result() == 81

        # An error surfaces once, where the callback ran; then the others get their turn.
        future = js(square, 4)
        future.when_done(fail, "disk full")
        future.when_done(seen.append, "after the error")
        try:
            future.wait()
        except CallbackRaised as error:
            assert error.seqno == 0
            assert isinstance(error.__cause__, OSError)
            print(f"{error!r} because of {error.__cause__!r}")
        else:
            raise AssertionError("the callback's error was lost")
        assert future.result() == 16
        assert seen[-1] == "after the error"

    # The end of the `with` block has no caller to raise to: it warns.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Jobserver(slots=1) as js:
            future = js(square, 5)
            future.when_done(fail, "first")
            future.when_done(fail, "second")
            with suppress(CallbackRaised):
                future.wait()
                raise AssertionError("the first callback was silenced")
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert "suppressed CallbackRaised" in str(warning.message)
    assert "OSError('second')" in str(warning.message)
    print("warned:", warning.message)


if __name__ == "__main__":
    main()
