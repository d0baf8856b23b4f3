"""Small trees, explored whole, and the traps that the exploration must find.

`./ci proof` explores larger trees: see `proof`.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Optional
from unittest import mock

import pytest

from jobserver import joined, kernel
from jobserver.joined import JoinedPool
from jobserver.kernel import OfdKernel
from jobserver.protocols import Grant, Slot
from jobserver.slots import PRESENCE, SlotPool

from .proof import explore as exploration
from .proof.explore import Member, Tree, Violated, explore
from .proof.world import READ, RECEIPTS_FILE, WRITE

THREE = Tree("three submissions", 2, (Member(3),))
NESTED = Tree("nested", 1, (Member(2, below=(1,)),))
CHAIN = Tree("lent on", 1, (Member(1, below=(1, 1)),))
AUDITED = Tree("an audit at any time", 1, (Member(2), Member(audits=1)))
BLIND = Tree("ends that are not told", 1, (Member(2, blind=True), Member(audits=1)))
HELPED = Tree("a fork at any time", 1, (Member(2, helpers=1),), kills=0)
THREADS = Tree("two threads", 1, (Member(2, threads=(Member(audits=1),)),))
JOINED = Tree("make's, an audit at any time", 2, (Member(2), Member(audits=1)), joined=True)
IMPLICIT = Tree("make's, nested", 1, (Member(2, below=(1,)),), joined=True)
COMMAND = Tree("a command", 2, (Member(commands=1),))
COMMAND_AUDITED = Tree("a command, audited", 2, (Member(commands=1), Member(audits=1)))
LENT_TO_PIPE = Tree(
    "a command that lends its slot", 1, (Member(commands=1, takes=0, gives=1), Member(1)), kills=0
)
TREES = (
    THREE,
    NESTED,
    CHAIN,
    AUDITED,
    BLIND,
    HELPED,
    THREADS,
    Tree("deaths that take two steps", 1, (Member(2), Member(audits=1)), slow=True),
    Tree("two handles", 1, (Member(1), Member(1))),
    COMMAND,
    COMMAND_AUDITED,
    Tree("a command of work", 1, (Member(1, inside=1),)),
    LENT_TO_PIPE,
    Tree(
        "a command that lends its slot, kills",
        1,
        (Member(commands=1, takes=0, gives=1), Member(audits=1)),
        ends=False,
    ),
    Tree(
        "a command that lends the slot of work",
        1,
        (Member(1, inside=1, takes=0, gives=1), Member(audits=1)),
        kills=0,
    ),
    Tree("a fork at any time, and kills", 2, (Member(1, helpers=1),)),
    JOINED,
    IMPLICIT,
    Tree("make's, three submissions", 2, (Member(3),), joined=True),
    Tree("make's, ends that are not told", 2, (Member(2, blind=True),), joined=True),
    Tree("make's, deaths that take two steps", 2, (Member(2),), joined=True, slow=True),
    Tree("two threads with work", 1, (Member(1, threads=(Member(1),)),)),
)


FEW = (THREE, NESTED, AUDITED, LENT_TO_PIPE)  # without --all


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param(tree, id=tree.name, marks=() if tree in FEW else pytest.mark.thorough)
        for tree in TREES
    ],
)
def test_no_slot_is_lost_or_doubled(tree: Tree) -> None:
    reach = explore(tree)
    print(reach)
    computing = sum(each.submissions + each.commands * (1 + each.takes) for each in tree.members)
    assert reach.most == min(tree.slots, computing)
    assert reach.idle
    assert reach.endings


# The traps: each was stepped into, or nearly. What they replace is the library's.


def enter_freely(_: OfdKernel, how: int) -> bool:  # noqa: ARG001
    return True


def leave_freely(_: OfdKernel) -> None:
    pass


def take_byte_first(pool: SlotPool) -> Optional[Slot]:
    """The byte before the receipt."""
    token = pool.kernel.read()
    if not token:
        return None
    receipt, place = pool._open(), pool.kernel.new_place()
    pool.kernel.lock(receipt, place)
    return Slot(token, place, None, receipt)


def count_receipts_first(pool: SlotPool) -> int:
    """As if nothing could be taken while an audit counts."""
    assert pool.count is not None
    receipts = pool._receipts()
    return max(0, pool.count - pool.kernel.waiting() - receipts)


def release_by_closing(pool: SlotPool, slot: Slot, ended: bool) -> None:  # noqa: ARG001
    """Leave the lock to the kernel, which lets go of it when the last copy is closed."""
    receipt, slot.receipt = slot.receipt, -1
    if receipt == pool._kept:
        pool._kept = -1
    pool.kernel.close(receipt)


def return_lent_at_once(pool: SlotPool, slot: Slot, ended: bool) -> bool:
    """Go on when who was lent the slot has ended, whoever that one had lent it to."""
    if slot.receipt >= 0:
        pool._release(slot, ended)
    pool._lent = None
    return True


def grant_beside_the_gate(pool: SlotPool, slot: Slot) -> Grant:
    presence = pool.kernel.open()
    pool.kernel.lock(presence, PRESENCE)
    pool.hand_over(slot, presence)
    return Grant(READ, WRITE, presence, "")


def find_nobody_present(kernel: Any, start: int, stop: int) -> Optional[int]:
    return None if start == PRESENCE else FIND(kernel, start, stop)


def drain_what_is_lent(pool: SlotPool) -> int:
    """As if a program that is present could only have more bytes than it should, never fewer."""
    present = pool.kernel.find(PRESENCE, PRESENCE + 1) is not None
    with mock.patch.object(
        pool.kernel, "find", functools.partial(find_nobody_present, pool.kernel)
    ):
        missing = MISSING(pool)
    return min(missing, 0) if present else missing


def give_back_at_once(pool: SlotPool, slot: Slot, *, ended: bool = True) -> bool:
    """Write the byte, whoever the worker had lent the slot to."""
    if slot is pool._lent:
        return pool._return_lent(slot, ended)
    if pool._enter(pool.kernel.share):
        pool.kernel.write(slot.token)
        pool._release(slot, ended)
        pool.kernel.leave()
    else:
        pool._release(slot, ended)
    return True


def take_implicit_at_once(pool: JoinedPool) -> Optional[Slot]:
    """Without a look whether it is lent on, by a worker that is dead by now."""
    if pool._has_implicit and not pool.out:
        receipt = pool._open()
        pool.kernel.lock(receipt, joined.IMPLICIT)
        pool.out += 1
        return Slot(b"", joined.IMPLICIT, None, receipt)
    return SlotPool.take(pool)


def give_back_all(pool: JoinedPool) -> int:
    """Whatever is in the ledger, whoever has a receipt for it."""
    return pool.kernel.waiting()


def give_back_nothing(_: JoinedPool) -> int:
    return 0


def pass_turnstile(_: object) -> bool:
    return True


def leave_turnstile(_: object) -> None:
    pass


FIND = OfdKernel.find
MISSING = SlotPool._missing

TRAPS: dict[str, tuple[Tree, list[tuple[Any, str, object]]]] = {
    "the gate's file is the receipts'": (BLIND, [(exploration, "GATE_FILE", RECEIPTS_FILE)]),
    "no gate": (
        AUDITED,
        [(OfdKernel, "_enter", enter_freely), (OfdKernel, "leave", leave_freely)],
    ),
    "audits share the gate": (AUDITED, [(OfdKernel, "exclude", OfdKernel.share)]),
    "byte before receipt": (AUDITED, [(SlotPool, "take", take_byte_first)]),
    "receipts before bytes in an audit": (AUDITED, [(SlotPool, "_missing", count_receipts_first)]),
    "no unlock before closing": (HELPED, [(SlotPool, "_release", release_by_closing)]),
    "nothing keeps threads apart": (
        THREADS,
        [
            (kernel._Turnstile, "enter", pass_turnstile),
            (kernel._Turnstile, "leave", leave_turnstile),
        ],
    ),
    "a presence that is not taken in the gate": (
        COMMAND_AUDITED,
        [(SlotPool, "grant", grant_beside_the_gate)],
    ),
    "audits whoever is present": (COMMAND_AUDITED, [(OfdKernel, "find", find_nobody_present)]),
    "a byte is drained that a program has lent": (
        LENT_TO_PIPE,
        [(SlotPool, "_missing", drain_what_is_lent)],
    ),
    "a lender goes on too early": (CHAIN, [(SlotPool, "_return_lent", return_lent_at_once)]),
    "the implicit slot is taken too early": (
        IMPLICIT,
        [(JoinedPool, "take", take_implicit_at_once)],
    ),
    "make gets back what is in use": (JOINED, [(JoinedPool, "_missing", give_back_all)]),
    "make never gets back what is lost": (JOINED, [(JoinedPool, "_missing", give_back_nothing)]),
    "a lent slot is given back": (NESTED, [(SlotPool, "give_back", give_back_at_once)]),
}


@pytest.mark.parametrize("name", TRAPS)
def test_each_trap_is_found(name: str) -> None:
    tree, replacements = TRAPS[name]
    with contextlib.ExitStack() as stack:
        for replaced in replacements:
            stack.enter_context(mock.patch.object(*replaced))
        with pytest.raises(Violated) as caught:
            explore(tree)
    print(caught.value)


def test_a_process_that_never_ends_is_found() -> None:
    """A pool without receipts: what the dead held is never found, and who waits for it waits."""
    with mock.patch.object(OfdKernel, "keeps_receipts", False):
        with pytest.raises(Violated):
            explore(THREE)
