"""What it takes to have a slot: to take one and give it back, and to look for lost ones."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Callable

from rounds import Round, Samples

from jobserver.protocols import Slot
from jobserver.slots import SlotPool

CALLS = 2000


@contextmanager
def steps(held: int) -> Generator[Round]:
    """Beside so many slots that are held. The first to be taken has the description kept open."""
    pool = SlotPool.create(held + 1)

    def take() -> Slot:
        slot = pool.take()
        assert slot is not None, "there is one more than are held"
        return slot

    def take_and_give_back() -> None:
        pool.give_back(take())

    def one_round() -> Samples:
        kept = [_seconds(take_and_give_back, CALLS)]
        slots = [take() for _ in range(held)]
        samples = {
            "kept": kept,
            "fresh": [_seconds(take_and_give_back, CALLS)],
            "audit": [_seconds(pool.audit, 10)],
        }
        for slot in slots:
            pool.give_back(slot)
        return samples

    yield one_round
    pool.close()


def _seconds(step: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls
