"""An admission gate: decide when the next submission may start.

A slot says that there is room; a gate says that now is a good time: memory is free, the load is
low, a licence server answers, a rate is kept. `replace_sleep(gate)` gives a handle whose
submissions first ask `gate()` in the submitting process. None admits; a number says how many
seconds to sleep before asking again. The sleep never overshoots the submission's own deadline.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Optional

from jobserver import Blocked, Jobserver


class Pace:
    """Admits no more than one submission in `interval` seconds."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.next = time.monotonic()
        self.admitted: list[float] = []

    def __call__(self) -> Optional[float]:
        now = time.monotonic()
        if now < self.next:
            return self.next - now
        self.next = now + self.interval
        self.admitted.append(now)
        return None


def closed_until_tomorrow() -> float:
    return 24 * 60 * 60


def broken() -> None:
    raise OSError("cannot read the load")


def square(number: int) -> int:
    return number * number


def main() -> None:
    with Jobserver(slots=4) as js:
        # Four slots are free, but the gate lets work in one by one.
        pace = Pace(interval=0.1)
        paced = js.replace_sleep(pace)
        futures = [paced(square, number) for number in range(4)]
        assert [future.result() for future in futures] == [0, 1, 4, 9]
        gaps = [after - before for before, after in zip(pace.admitted, pace.admitted[1:])]
        assert len(gaps) == 3
        assert round(min(gaps), 6) >= pace.interval
        print("seconds between admissions:", *(f"{gap:.2f}" for gap in gaps))

        # A deadline holds at the gate too, and work without a slot is asked there as well.
        closed = js.replace_sleep(closed_until_tomorrow)
        for consume in (1, 0):
            with suppress(Blocked):
                closed.submit(square, args=(3,), consume=consume, timeout=0.1)
                raise AssertionError("the gate was closed")

        # An error of the gate reaches the one who submits. It costs no slot ...
        for _ in range(5):
            with suppress(OSError):
                js.replace_sleep(broken)(square, 3)
                raise AssertionError("the gate was broken")

        # ... and the handle from which the others were made has no gate at all.
        assert list(js.map(square, [(3,), (4,)], timeout=60)) == [9, 16]


if __name__ == "__main__":
    main()
