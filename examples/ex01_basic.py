"""Basic use: run functions in other processes, under a fixed number of slots.

A `Jobserver` has slots. Every submission takes one, runs in a worker process of its own, and gives
the slot back when it is over; while all slots are taken, the next submission waits for its turn.
Submitting returns a `Future`, whose `result()` is what the function returned or raises what it
raised.

Workers import this file to find the functions that they run. Hence functions at module level, and
`if __name__ == "__main__"` around the rest, as always with multiprocessing.
"""

from __future__ import annotations

import os

from jobserver import Jobserver


def factors(number: int, first: int = 2) -> list[int]:
    """The prime factors of a number, none smaller than `first`."""
    found: list[int] = []
    divisor = first
    while divisor * divisor <= number:
        if number % divisor:
            divisor += 1
        else:
            number //= divisor
            found.append(divisor)
    return [*found, number]


def main() -> None:
    # Jobserver() alone takes the platform's start method and a slot for each CPU it may use.
    with Jobserver(slots=2) as js:
        # Call the Jobserver as you would call the function.
        future = js(factors, 91, first=3)
        assert future.result() == [7, 13]
        assert future.result() == [7, 13]  # as often as you like

        # The work ran in another process.
        assert js(os.getpid).result() != os.getpid()

        # `submit` is the same with options: here, give up when there is no slot for a minute.
        future = js.submit(factors, args=(91,), kwargs={"first": 3}, timeout=60)
        assert future.result() == [7, 13]

        # What the function raises, `result` raises; the cause shows the worker's traceback.
        wrong = js(int, "ninety-one")
        try:
            wrong.result()
        except ValueError as error:
            assert "ninety-one" in str(error)
            assert "Traceback" in str(error.__cause__)
        else:
            raise AssertionError("int() took a word for a number")

        # `map` submits once for each tuple of arguments; results come in the order of arguments.
        numbers = [2021, 2022, 2023, 2024]
        found = list(js.map(factors, [(number,) for number in numbers]))
        assert found == [[43, 47], [2, 3, 337], [7, 17, 17], [2, 2, 2, 11, 23]]

    for number, primes in zip(numbers, found):
        print(number, "=", " * ".join(map(str, primes)))


if __name__ == "__main__":
    main()
