"""Nesting: work that submits work, to any depth, on the same slots.

A `Jobserver` may be an argument of a submission, under every start method. The worker's handle
draws on the same slots: however work fans out below, no more than `slots` of it runs at once.

The program itself holds no slot, and work keeps its slot while it waits for what it submitted. So
N slots hold a chain of N submissions: the first, and N-1 nested below it. What happens to the next
one is the caller's choice:

* `timeout=0`, or any number of seconds: `Blocked`, if no slot comes free within them.
* `timeout=None`, the default: `submit` waits, and so that a full tree cannot stand still, the new
  work starts on the slot of its submitter, who is waiting. Every tree finishes at last.
* `consume=0`: it takes no slot at all, for work that costs next to nothing.
"""

from __future__ import annotations

import multiprocessing

from jobserver import Blocked, Jobserver

SLOTS = 4


def depth(js: Jobserver) -> int:
    """How deep submissions can be nested below this one while slots last."""
    try:
        nested = js.submit(depth, args=(js,), timeout=0)
    except Blocked:
        return 0
    return 1 + nested.result()


def descend(js: Jobserver, levels: int) -> int:
    """Nest that many submissions, however many slots there are."""
    return 1 + js(descend, js, levels - 1).result() if levels else 0


def escape(js: Jobserver, levels: int) -> int:
    """Fill the slots as `depth` does, then go one deeper without one."""
    if levels:
        return js.submit(escape, args=(js, levels - 1), timeout=0).result()
    return js.submit(depth, args=(js,), consume=0, timeout=0).result()


def main() -> None:
    for method in multiprocessing.get_all_start_methods():
        with Jobserver(method, slots=SLOTS) as js:
            assert js(depth, js).result() == SLOTS - 1
            assert js(descend, js, 2 * SLOTS).result() == 2 * SLOTS
            assert js(escape, js, SLOTS - 1).result() == 0
            assert js(depth, js).result() == SLOTS - 1  # every slot came back
        print(f"{method}: {SLOTS} slots nest {SLOTS - 1} deep, or as deep as it takes")


if __name__ == "__main__":
    main()
