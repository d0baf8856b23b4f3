"""Lifecycle: when a slot comes back, and what closing means.

A `Jobserver` has no thread that could tidy up behind your back. Finished work is reclaimed (its
worker reaped, its descriptors closed, its slot given back, its callbacks called) inside the calls
that you make: in `done`, `wait` and `result` of that Future, in every `submit`, in
`reclaim_resources`, and at the end of the `with` block.

The end of the last `with` block over a Jobserver and its sibling handles closes it. Work that is
still running then is neither waited for nor cancelled: its Future goes on, and you may wait for it.
"""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.connection import Connection

from jobserver import Jobserver


def echo(value: str) -> str:
    return value


def receive(connection: Connection) -> str:
    """Hold a slot until the parent sends a word."""
    word: str = connection.recv()
    return word


def reclaiming() -> None:
    with Jobserver(slots=1) as js:
        assert "tracked=0," in repr(js)
        finished: list[str] = []

        # One slot: the second submission needs the slot of the first, and finds it by reclaiming.
        first = js(echo, "first")
        first.when_done(finished.append, "first")
        second = js(echo, "second")
        assert finished == ["first"]  # although nobody has asked the first Future anything
        second.when_done(finished.append, "second")

        # A program with a loop of its own reclaims once a turn. That never waits.
        turns = 0
        while not second.done():
            js.reclaim_resources()
            turns += 1
        assert finished == ["first", "second"]
        assert "tracked=0," in repr(js)
        assert [first.result(), second.result()] == ["first", "second"]  # results are kept
        print(f"the second submission was reclaimed after {turns} turns of a loop")


def closing() -> None:
    js = Jobserver(slots=1)
    receiver, sender = js.context.Pipe(duplex=False)
    with receiver, sender:
        with js:
            with js:  # entries are counted: only the last exit closes
                assert js(echo, "inside").result() == "inside"
            late = js(receive, receiver)

        # Closed: there is no new work, but what was running goes on.
        with suppress(RuntimeError):
            js(echo, "too late")
            raise AssertionError("a closed Jobserver accepted work")
        assert not late.done()
        sender.send("better late than never")
        assert late.result() == "better late than never"
        print("the last result came after the Jobserver was closed")


def main() -> None:
    reclaiming()
    closing()


if __name__ == "__main__":
    main()
