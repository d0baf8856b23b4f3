"""The scheme of the slots, step by step, within one process: pools that stand for several.

A pool that `dies` does what the kernel does when a process is killed: its descriptors are closed,
and nothing else happens.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Optional

import pytest

from jobserver import forks, kernel, worker
from jobserver.protocols import Grant, Slot
from jobserver.slots import DEPTHS, PLACES, SlotPool

SLOTS = 3


class Member:
    """A process of the tree: its view of the slots, and the receipt of the work that it runs."""

    def __init__(
        self, of: kernel.Kernels, slot: Optional[Slot] = None, lender: Optional[Member] = None
    ) -> None:
        self.kernel = kernel.arrive([os.dup(fd) for fd in of.descriptors], of.directory)
        self.opened: set[int] = set()
        self._open, self._close = self.kernel.open, self.kernel.close
        self.kernel.open = self.note_open  # type: ignore[method-assign]
        self.kernel.close = self.note_close  # type: ignore[method-assign]
        self.slots = SlotPool("test", SLOTS, self.kernel)
        self.receipt: Optional[int] = None
        self.held: Optional[worker.Held] = None
        if slot is not None and lender is not None:
            self.receipt = os.dup(slot.receipt)
            self.held = lender.slots.held(slot)

    def note_open(self) -> int:
        receipt = self._open()
        self.opened.add(receipt)
        return receipt

    def note_close(self, receipt: int) -> None:
        self.opened.discard(receipt)
        self._close(receipt)

    def lend(self) -> Optional[Slot]:
        worker.held = self.held
        try:
            return self.slots.lend()
        finally:
            worker.held = None

    def shut_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Find others in the gate whenever it tries, until `monkeypatch.undo()`."""
        for name in ("share", "exclude"):
            monkeypatch.setattr(self.kernel, name, lambda: False)
        monkeypatch.setattr(self.kernel, "pause", lambda: None)

    def die(self) -> None:
        """Be killed."""
        for fd in self.opened:
            forks.close(fd)
        for fd in self.kernel.descriptors:
            os.close(fd)
        if self.receipt is not None:
            os.close(self.receipt)


class Tree:
    def __init__(self) -> None:
        self.kernel = kernel.create()
        self.kernel.write(b"+" * SLOTS)
        self.members: list[Member] = []

    def member(self, slot: Optional[Slot] = None, lender: Optional[Member] = None) -> Member:
        member = Member(self.kernel, slot, lender)
        self.members.append(member)
        return member

    def kill(self, member: Member) -> None:
        self.members.remove(member)
        member.die()

    def free(self) -> int:
        return self.kernel.waiting()


@pytest.fixture(params=["ofd", "flock"])
def tree(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    if request.param == "flock":
        monkeypatch.setattr(kernel, "HAS_OFD", False)
    tree = Tree()
    kind = kernel.FlockKernel if request.param == "flock" else kernel.OfdKernel
    if not isinstance(tree.kernel, kind):
        tree.kernel.shut()
        pytest.skip(f"this platform has no {kind.__name__}")
    yield tree
    for member in list(tree.members):
        tree.kill(member)
    assert tree.kernel.find(0, PLACES) is None
    tree.kernel.shut()
    assert not os.path.exists(tree.kernel.directory)


def some(slot: Optional[Slot]) -> Slot:
    assert slot is not None
    return slot


def test_places_are_where_blocks_begin(tree: Tree) -> None:
    places = {tree.kernel.new_place() for _ in range(1000)}
    assert len(places) == 1000
    assert all(place % DEPTHS == 0 and 0 <= place < PLACES for place in places)


def test_taken_and_given_back(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree.member()
    monkeypatch.setattr(root.kernel, "pause", None)  # nobody is waited for
    slots = [some(root.slots.take()) for _ in range(SLOTS)]
    assert root.slots.take() is None
    assert root.slots.audit() == 0
    for number, slot in enumerate(slots, 1):
        assert root.slots.give_back(slot)
        assert tree.free() == number
        assert root.slots.audit() == 0


def test_a_token_goes_back_as_it_came(tree: Tree) -> None:
    root = tree.member()
    for _ in range(SLOTS):
        assert tree.kernel.read() == b"+"
    tree.kernel.write(b"!")
    root.slots.give_back(some(root.slots.take()))
    assert tree.kernel.read() == b"!"


def test_what_the_dead_held_is_recovered_once(tree: Tree) -> None:
    dead, living = tree.member(), tree.member()
    for _ in range(2):
        some(dead.slots.take())
    kept = some(living.slots.take())
    tree.kill(dead)
    assert tree.free() == 0
    assert living.slots.audit() == 2
    assert living.slots.audit() == 0
    assert living.slots.give_back(kept)
    assert tree.free() == SLOTS
    assert living.slots.recovered == 2
    assert tree.member().slots.recovered == 2


def test_a_slot_is_in_use_while_its_worker_lives(tree: Tree) -> None:
    """The submitter was killed: the slot comes free when the worker ends."""
    submitter, other = tree.member(), tree.member()
    worker_ = tree.member(some(submitter.slots.take()), submitter)
    tree.kill(submitter)
    assert other.slots.audit() == 0
    assert tree.free() == SLOTS - 1
    tree.kill(worker_)
    assert other.slots.audit() == 1


def test_a_stray_copy_of_a_receipt_does_not_keep_it(tree: Tree) -> None:
    """A child that was just being forked, say."""
    root = tree.member()
    slot = some(root.slots.take())
    stray = os.dup(slot.receipt)
    assert root.slots.give_back(slot)
    assert tree.free() == SLOTS
    assert root.slots.audit() == 0
    os.close(stray)


def test_a_worker_that_nobody_can_tell_of_keeps_its_slot(tree: Tree) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    unknown = tree.member(slot, root)
    assert root.slots.give_back(slot, ended=False)
    assert tree.free() == SLOTS - 1
    assert root.slots.audit() == 0
    tree.kill(unknown)
    assert root.slots.audit() == 1
    slot = some(root.slots.take())
    gone = tree.member(slot, root)
    tree.kill(gone)
    assert root.slots.give_back(slot, ended=False)
    assert tree.free() == SLOTS


def test_too_many_bytes_are_drained(tree: Tree) -> None:
    root = tree.member()
    kept = some(root.slots.take())
    tree.kernel.write(b"++")
    assert root.slots.audit() == 0
    assert tree.free() == SLOTS - 1
    root.slots.give_back(kept)


def test_a_byte_that_is_about_to_be_taken_is_not_drained(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its taker has the receipt already, so for the moment there is one too many."""
    root, other = tree.member(), tree.member()
    receipt, place = tree.kernel.open(), tree.kernel.new_place()
    tree.kernel.lock(receipt, place)
    taken: list[bytes] = []

    def take_it_and_another() -> None:
        taken.append(tree.kernel.read())
        taken.append(some(other.slots.take()).token)

    monkeypatch.setattr(root.kernel, "pause", take_it_and_another)
    assert root.slots.audit() == 0
    assert taken == [b"+", b"+"]
    assert tree.free() == SLOTS - 2
    tree.kernel.unlock(receipt, place)
    tree.kernel.close(receipt)
    assert root.slots.audit() == 1


@pytest.mark.parametrize("alone", [False, True])
def test_nobody_waits_for_the_gate(tree: Tree, alone: bool) -> None:
    """As if a process were stopped within: the others come back later, or leave it to an audit."""
    root = tree.member()
    slot = some(root.slots.take())
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # POSIX locks are of a process, so it takes one.
        entered = tree.kernel.exclude() if alone else tree.kernel.share()
        os.write(write, b"." if entered else b"!")
        signal.pause()
    os.close(write)
    try:
        assert os.read(read, 1) == b"."
        assert root.slots.audit() == 0
        assert root.slots.hindered
        other = some(root.slots.take())  # which needs no gate
        assert not root.slots.hindered
        assert root.slots.give_back(slot)
        assert tree.free() == SLOTS - (2 if alone else 1)  # one is taken, one was not written
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
    assert root.slots.audit() == (1 if alone else 0)
    assert not root.slots.hindered
    root.slots.give_back(other)
    assert tree.free() == SLOTS


def test_threads_exclude_each_other(tree: Tree) -> None:
    """Which the locks of a process do not see to."""
    root, other = tree.member(), tree.member()
    slot = some(root.slots.take())
    in_thread: list[object] = []
    assert root.kernel.share()
    try:
        thread = threading.Thread(target=lambda: in_thread.append(other.kernel.exclude()))
        thread.start()
        thread.join()
        assert in_thread == [False]
        assert not other.kernel.exclude()
    finally:
        root.kernel.leave()
    assert root.slots.give_back(slot)


def test_a_gate_stays_shut_when_another_handle_of_it_is_closed(tree: Tree) -> None:
    """Closing any descriptor of a file drops the locks that the process has on it."""
    root, other = tree.member(), tree.member()
    tree.members.remove(other)
    assert root.kernel.share()
    before = len(os.listdir("/proc/self/fd"))
    other.kernel.shut()
    pid = os.fork()
    if pid == 0:
        os._exit(not tree.kernel.exclude())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    root.kernel.leave()
    assert len(os.listdir("/proc/self/fd")) == before - len(root.kernel.descriptors)


def test_a_finalizer_amid_a_step_does_not_wait_for_it(tree: Tree) -> None:
    root, other = tree.member(), tree.member()
    slots = [some(root.slots.take()), some(other.slots.take())]
    assert root.kernel.share()
    assert other.slots.give_back(slots.pop())
    assert other.slots.hindered
    root.kernel.leave()
    assert root.slots.audit() == 1
    assert root.slots.give_back(slots.pop())


def lent(tree: Tree, lender: Member) -> tuple[Slot, Member]:
    slot = some(lender.lend())
    assert lender.slots.is_lent(slot)
    return slot, tree.member(slot, lender)


def test_lent_it_is_still_one_slot(tree: Tree) -> None:
    root = tree.member()
    first_slot = some(root.slots.take())
    assert root.lend() is None
    first = tree.member(first_slot, root)
    second_slot, second = lent(tree, first)
    assert first.lend() is None
    third_slot, third = lent(tree, second)
    assert [member.slots.out for member in (root, first, second, third)] == [1, 1, 1, 0]
    assert root.slots.audit() == 0
    assert tree.free() == SLOTS - 1
    tree.kill(third)
    assert second.slots.give_back(third_slot)
    assert second.slots.out == 0
    tree.kill(second)
    assert first.slots.give_back(second_slot)
    assert some(first.lend()).place % DEPTHS == 1
    tree.kill(first)
    assert root.slots.give_back(first_slot)
    assert tree.free() == SLOTS
    assert root.slots.audit() == 0


def test_the_slot_of_a_killed_lender_is_its_borrowers(tree: Tree) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    lender = tree.member(slot, root)
    _, borrower = lent(tree, lender)
    tree.kill(lender)
    assert root.slots.give_back(slot)
    assert tree.free() == SLOTS - 1
    assert root.slots.audit() == 0
    tree.kill(borrower)
    assert root.slots.audit() == 1


def test_the_middle_of_a_chain_is_killed(tree: Tree) -> None:
    """Whoever it lent the slot to computes; so the one it had the slot from must not yet."""
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    slot, middle = lent(tree, first)
    _, last = lent(tree, middle)
    tree.kill(middle)
    assert first.slots.give_back(slot) is False
    assert first.slots.is_lent(slot)
    assert first.slots.relieve(slot) is False
    assert first.slots.hindered
    assert first.lend() is None
    assert first.slots.give_back(slot) is False
    assert root.slots.audit() == 0
    tree.kill(last)
    assert first.slots.give_back(slot)
    assert some(first.lend()).place % DEPTHS == 1


def test_relieved_it_is_two_slots(tree: Tree) -> None:
    root = tree.member()
    first_slot = some(root.slots.take())
    first = tree.member(first_slot, root)
    slot, second = lent(tree, first)
    others = [some(root.slots.take()) for _ in range(SLOTS - 1)]
    assert first.slots.relieve(slot) is False
    assert not first.slots.hindered
    root.slots.give_back(others.pop())
    assert first.slots.relieve(slot)
    assert not first.slots.is_lent(slot)
    assert tree.free() == 0
    assert root.slots.audit() == 0
    tree.kill(second)
    assert first.slots.give_back(slot)
    assert tree.free() == 1
    tree.kill(first)
    assert root.slots.give_back(first_slot)
    assert root.slots.give_back(others.pop())
    assert tree.free() == SLOTS
    assert root.slots.audit() == 0


@pytest.mark.parametrize("first_dead", ["lender", "borrower"])
def test_killed_once_relieved(tree: Tree, first_dead: str) -> None:
    root = tree.member()
    root_slot = some(root.slots.take())
    lender = tree.member(root_slot, root)
    slot, borrower = lent(tree, lender)
    assert lender.slots.relieve(slot)
    assert tree.free() == SLOTS - 2
    if first_dead == "lender":
        tree.kill(lender)
        assert root.slots.give_back(root_slot)
        assert root.slots.audit() == 0
        assert tree.free() == SLOTS - 1
        tree.kill(borrower)
        assert root.slots.audit() == 1
    else:
        tree.kill(borrower)
        assert lender.slots.give_back(slot)
        assert tree.free() == SLOTS - 1
        tree.kill(lender)
        assert root.slots.give_back(root_slot)
        assert root.slots.audit() == 0


def test_only_the_deepest_of_a_chain_is_relieved(tree: Tree) -> None:
    """What had been lent on would stay behind: two on one slot, should the middle be killed."""
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    slot, second = lent(tree, first)
    deeper, third = lent(tree, second)
    assert first.slots.relieve(slot) is False
    assert first.slots.hindered
    assert second.slots.relieve(deeper)
    assert first.slots.relieve(slot)
    assert tree.free() == 0
    assert root.slots.audit() == 0
    for member in (second, third):
        tree.kill(member)
    assert first.slots.give_back(slot)
    assert root.slots.audit() == 1
    assert tree.free() == SLOTS - 1


def test_who_was_relieved_lends_what_it_now_has(tree: Tree) -> None:
    """So that the slot is not free while somebody computes on it, when the lender ends."""
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    slot, second = lent(tree, first)
    assert first.slots.relieve(slot)
    deeper, third = lent(tree, second)
    assert deeper.place == slot.place + 1
    tree.kill(second)
    assert first.slots.give_back(slot)
    assert root.slots.audit() == 0
    assert tree.free() == SLOTS - 2
    tree.kill(third)
    assert root.slots.audit() == 1


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step", ["lock", "unlock"])
def test_killed_while_it_relieves(tree: Tree, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree.member()
    root_slot = some(root.slots.take())
    lender = tree.member(root_slot, root)
    slot, borrower = lent(tree, lender)

    def killed(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(lender.kernel, step, killed)
    with pytest.raises(KilledError):
        lender.slots.relieve(slot)
    monkeypatch.undo()
    tree.kill(lender)
    assert root.slots.give_back(root_slot)
    root.slots.audit()
    # Until the borrower ends, it may have two; there are never too many.
    assert tree.free() in (SLOTS - 1, SLOTS - 2)
    assert root.slots.audit() == 0
    tree.kill(borrower)
    root.slots.audit()
    assert tree.free() == SLOTS


def test_a_new_member_opens_nothing_before_it_needs_it(tree: Tree) -> None:
    before = len(os.listdir("/proc/self/fd"))
    root = tree.member()
    assert len(os.listdir("/proc/self/fd")) == before + len(root.kernel.descriptors)


def test_one_description_is_kept_for_the_next_slot(tree: Tree) -> None:
    root = tree.member()
    first = -1
    for _ in range(3):
        held = [some(root.slots.take()) for _ in range(SLOTS)]
        first = held[0].receipt
        while held:
            root.slots.give_back(held.pop())
        assert root.opened == {first}
    slot = some(root.slots.take())
    assert slot.receipt == first
    root.slots.give_back(slot, ended=False)
    assert root.opened == set()


def test_the_next_description_is_kept_when_the_kept_one_is_gone(tree: Tree) -> None:
    root = tree.member()
    kept, other = some(root.slots.take()), some(root.slots.take())
    first = kept.receipt
    root.slots.give_back(other, ended=False)
    root.slots.give_back(kept)
    assert root.opened == {first}
    root.slots.give_back(some(root.slots.take()), ended=False)
    assert root.opened == set()
    somebody_elses = os.dup(0)  # most likely the number that was ours
    slot = some(root.slots.take())
    second = slot.receipt
    root.slots.give_back(slot)
    assert root.opened == {second}
    os.close(somebody_elses)


def test_the_bytes_of_the_gate_count(tree: Tree) -> None:
    for number in range(1, 4):
        assert tree.kernel.read()
        root = tree.member()
        assert root.slots.audit() == 1
        assert root.slots.recovered == number


def test_a_new_member_has_no_complaint(tree: Tree) -> None:
    root = tree.member()
    assert root.slots.recovers is True
    assert root.slots.hindered is False
    assert root.slots.recovered == 0


def test_a_slot_taken_in_vain_holds_nothing(tree: Tree) -> None:
    while tree.kernel.read():
        pass
    root = tree.member()
    for _ in range(2):
        assert root.slots.take() is None
        assert tree.kernel.find(0, PLACES) is None
    assert len(root.opened) == 1


def test_nothing_is_lent_while_others_are_in_the_gate(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    first.shut_out(monkeypatch)
    for _ in range(2):
        assert first.lend() is None
        assert first.slots.hindered
    assert len(first.opened) == 1
    monkeypatch.undo()
    slot = some(first.lend())
    assert first.opened == {slot.receipt}
    assert some(first.slots.take()).receipt != slot.receipt


def test_who_is_kept_out_of_the_gate_pauses_before_it_tries_again(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree.member()
    root.shut_out(monkeypatch)
    pauses: list[None] = []
    monkeypatch.setattr(root.kernel, "pause", lambda: pauses.append(None))
    assert root.slots.audit() == 0
    assert len(pauses) > 1
    assert root.slots.hindered


def test_nobody_is_relieved_while_others_are_in_the_gate(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    slot, _ = lent(tree, first)
    first.shut_out(monkeypatch)
    assert first.slots.relieve(slot) is False
    assert first.slots.hindered
    assert first.slots.is_lent(slot)
    monkeypatch.undo()
    assert tree.free() == SLOTS - 1
    assert first.slots.relieve(slot) is True
    assert not first.slots.hindered


def test_only_who_was_lent_a_slot_is_relieved(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree.member()
    root_slot = some(root.slots.take())
    first = tree.member(root_slot, root)
    slot, second = lent(tree, first)
    tree.kill(second)
    assert first.slots.give_back(slot)
    for other in (None, root_slot, slot):
        first.shut_out(monkeypatch)
        assert first.slots.audit() == 0
        assert first.slots.hindered
        monkeypatch.undo()
        assert first.slots.relieve(other) is False
        assert not first.slots.hindered
    assert not first.slots.is_lent(None)
    assert tree.free() == SLOTS - 1


def test_a_process_that_was_left_behind_on_a_lent_slot_is_not_relieved(tree: Tree) -> None:
    """Nobody can tell of the worker, which has forked: its receipt is out of our hands."""
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    slot, second = lent(tree, first)
    assert second.receipt is not None
    left = os.dup(second.receipt)
    tree.kill(second)
    assert first.slots.give_back(slot, ended=False) is False
    assert first.slots.relieve(slot) is False
    assert first.slots.hindered
    assert tree.free() == SLOTS - 1
    os.close(left)
    assert first.slots.give_back(slot) is True


def test_nobody_lends_beyond_the_end_of_a_block(tree: Tree) -> None:
    for depth, deeper in ((DEPTHS - 3, DEPTHS - 2), (DEPTHS - 2, None)):
        member = tree.member()
        member.held = "test", 5 * DEPTHS + depth, None
        slot = member.lend()
        assert (slot and slot.place) == (None if deeper is None else 5 * DEPTHS + deeper)
        tree.kill(member)


def test_a_receipt_may_be_descriptor_0(tree: Tree) -> None:
    """In a program that has closed its standard input."""
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    stdin = os.dup(0)
    os.close(0)
    try:
        slot, second = lent(tree, first)
        assert slot.receipt == 0
        other = some(first.slots.take())
        first.slots.give_back(other)
        assert first.opened == {0}
        assert first.slots.relieve(slot) is True
        tree.kill(second)
        assert first.slots.give_back(slot)
        slot, second = lent(tree, first)
        assert slot.receipt == 0
        tree.kill(second)
        assert first.slots.give_back(slot)
        assert some(first.slots.take()).receipt == 0
        tree.kill(first)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_more_are_held_than_there_are_slots(tree: Tree) -> None:
    root = tree.member()
    for _ in range(SLOTS):
        some(root.slots.take())
    tree.kernel.write(b"+")
    some(root.slots.take())
    assert root.slots.audit() == 0
    assert root.slots.recovered == 0


def test_the_first_and_the_last_place_count(tree: Tree) -> None:
    root = tree.member()
    for place in (0, PLACES - DEPTHS):
        root.kernel.lock(root.kernel.open(), place)
        assert tree.kernel.read()
        assert root.slots.audit() == 0


def test_what_is_recovered_is_logged(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "jobserver")
    tree.member().slots.audit()
    closed = tree.member()
    tree.members.remove(closed)
    closed.slots.close()
    assert not caplog.records
    living = tree.member()
    for number in (2, 1):
        dead = tree.member()
        for _ in range(number):
            some(dead.slots.take())
        tree.kill(dead)
        assert living.slots.audit() == number
        assert living.slots.audit() == 0
        (record,) = caplog.records
        text = f"slots test: {number} slots of processes that were killed are recovered"
        assert record.getMessage() == text
        caplog.clear()
    tree.members.remove(living)
    living.slots.close()
    assert caplog.messages == ["slots test: closed; 3 slots had to be recovered"]


def test_closing_recovers_what_is_lost(tree: Tree) -> None:
    dead, living = tree.member(), tree.member()
    living.slots.give_back(some(living.slots.take()))
    some(dead.slots.take())
    tree.kill(dead)
    tree.members.remove(living)
    living.slots.close()
    assert tree.free() == SLOTS
    assert living.opened == set()
    living.slots.close()
    assert living.slots.audit() == 0
    assert living.slots.recovered == 1


def test_a_forked_child_has_lent_nothing_and_opens_receipts_of_its_own(tree: Tree) -> None:
    root = tree.member()
    first = tree.member(some(root.slots.take()), root)
    slot, _ = lent(tree, first)
    idle = tree.member()
    idle.slots.give_back(some(idle.slots.take()))
    free = tree.free()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for member in (idle, first):
                assert not member.slots.is_lent(slot)
                assert member.slots.out == 0
                os.dup(0)  # so that none of ours has the number of one of the parent's
                taken = some(member.slots.take())
                receipt = taken.receipt
                assert member.slots.give_back(taken)
                assert receipt in member.opened
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert first.slots.is_lent(slot)
    assert tree.free() == free


def test_a_forked_child_does_not_take_the_place_that_its_parent_has_chosen(tree: Tree) -> None:
    """Two in one place would be counted as one slot."""
    root = tree.member()
    held = [some(root.slots.take()) for _ in range(SLOTS)]
    assert root.slots.take() is None  # so the place is for the next one
    for slot in held:
        root.slots.give_back(slot)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(some(root.slots.take()).place).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        theirs = int(file.read())
    assert os.waitpid(pid, 0)[1] == 0
    assert some(root.slots.take()).place != theirs
    assert root.slots.audit() == 1


def test_without_receipts_nothing_is_recovered() -> None:
    """As on Windows."""
    read, write = os.pipe()
    for fd in (read, write):
        os.set_blocking(fd, False)
    pool = SlotPool("test", 1, kernel.CountingKernel(read, write))
    assert pool.recovers is False
    pool.kernel.write(b"+")
    for _ in range(2):
        slot = some(pool.take())
        assert pool.take() is None
        assert pool.audit() == 0
        assert pool.give_back(slot)
    pool.close()
    assert pool.recovered == 0


class Program:
    """One of another kind, which has what it inherits of a grant, and takes bytes by itself."""

    def __init__(self, grant: Optional[Grant]) -> None:
        assert grant is not None
        self.read, self.write, self.presence = map(os.dup, grant.descriptors)

    def take(self, count: int) -> None:
        for _ in range(count):
            assert os.read(self.read, 1)

    def give_back(self, count: int) -> None:
        os.write(self.write, b"!" * count)

    def leave_an_heir(self) -> int:
        return os.dup(self.presence)

    def end(self) -> None:
        for fd in (self.read, self.write, self.presence):
            os.close(fd)


def granted(grant: Optional[Grant]) -> Grant:
    assert grant is not None
    return grant


def test_a_program_gives_back_what_it_took(tree: Tree) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    program = Program(grant)
    program.take(2)
    assert tree.free() == 0
    assert root.slots.audit() == 0
    assert tree.free() == 0
    program.give_back(2)
    program.end()
    assert root.slots.give_back(slot)
    root.slots.withdraw(grant)
    assert tree.free() == SLOTS
    assert root.slots.recovered == 0


def test_what_a_killed_program_held_comes_back_when_its_last_heir_has_ended(tree: Tree) -> None:
    root, other = tree.member(), tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    program = Program(grant)
    program.take(2)
    heir = program.leave_an_heir()
    program.end()
    assert root.slots.give_back(slot)
    root.slots.withdraw(grant)
    assert tree.free() == 1
    assert other.slots.audit() == 0
    os.close(heir)
    assert other.slots.audit() == 2
    assert tree.free() == SLOTS
    assert root.slots.recovered == 2


def test_withdrawing_recovers_what_a_killed_program_held(tree: Tree) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    program = Program(grant)
    program.take(1)
    program.end()
    assert root.slots.give_back(slot)
    assert tree.free() == SLOTS - 1
    root.slots.withdraw(grant)
    assert tree.free() == SLOTS


def test_nobody_recovers_the_dead_while_a_program_runs(tree: Tree) -> None:
    """Who has the byte that is missing, the dead member or the program? It cannot be told."""
    root, dead = tree.member(), tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    some(dead.slots.take())
    tree.kill(dead)
    assert root.slots.audit() == 0
    assert root.slots.give_back(slot)
    root.slots.withdraw(grant)
    assert tree.free() == SLOTS
    assert root.slots.recovered == 1


def test_a_byte_that_a_program_has_lent_is_not_drained(tree: Tree) -> None:
    """cc-rs and rustc put the slot on which they run into the pipe, and read it back."""
    root, other = tree.member(), tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    program = Program(grant)
    program.give_back(1)
    assert root.slots.audit() == other.slots.audit() == 0
    assert tree.free() == SLOTS
    program.take(1)
    program.end()
    root.slots.give_back(slot)
    root.slots.withdraw(grant)
    assert tree.free() == SLOTS


def test_what_a_killed_program_had_lent_is_drained_when_its_last_heir_has_ended(
    tree: Tree,
) -> None:
    root, other = tree.member(), tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    program = Program(grant)
    program.give_back(1)
    heir = program.leave_an_heir()
    program.end()
    root.slots.give_back(slot)
    root.slots.withdraw(grant)
    assert tree.free() == SLOTS + 1
    os.close(heir)
    assert other.slots.audit() == 0
    assert tree.free() == SLOTS


def test_the_slot_of_a_program_is_in_use_while_it_runs_whoever_is_killed(tree: Tree) -> None:
    starter, other = tree.member(), tree.member()
    grant = granted(starter.slots.grant(some(starter.slots.take())))
    program = Program(grant)
    tree.kill(starter)
    for fd in (grant.read, grant.write):
        forks.close(fd)
    assert other.slots.audit() == 0
    assert tree.free() == SLOTS - 1
    program.end()
    assert other.slots.audit() == 1
    assert tree.free() == SLOTS


def test_a_program_runs_on_the_slot_of_work(tree: Tree) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    work = tree.member(slot, root)
    lent = some(work.lend())
    grant = granted(work.slots.grant(lent))
    program = Program(grant)
    assert tree.free() == SLOTS - 1
    # The work is killed: its own slot is not given back while the program runs on it.
    tree.kill(work)
    for fd in (grant.read, grant.write):
        forks.close(fd)
    assert root.slots.give_back(slot)
    assert tree.free() == SLOTS - 1
    program.end()
    assert root.slots.audit() == 1
    assert tree.free() == SLOTS


def test_nothing_is_granted_while_others_are_in_the_gate(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    before = os.listdir("/proc/self/fd"), set(root.opened)
    root.shut_out(monkeypatch)
    assert root.slots.grant(slot) is None
    assert root.slots.hindered
    monkeypatch.undo()
    assert (os.listdir("/proc/self/fd"), root.opened) == before
    assert root.slots.give_back(slot)


def test_a_program_has_descriptions_of_its_own(tree: Tree) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    grant = granted(root.slots.grant(slot))
    # make 4.3 cannot do with ends that do not block, and 4.4 sets flags on those that it has.
    assert os.get_blocking(grant.read)
    assert os.get_blocking(grant.write)
    os.set_blocking(grant.read, False)
    os.set_blocking(grant.write, True)
    assert not os.get_blocking(root.slots.fileno())
    assert grant.path == ""  # an anonymous pipe has none; see test_fifos
    assert not any(map(os.get_inheritable, grant.descriptors))
    assert root.slots.give_back(slot)
    root.slots.withdraw(grant)


def test_nothing_is_left_of_a_grant_that_there_is_no_room_for(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree.member()
    slot = some(root.slots.take())
    before = os.listdir("/proc/self/fd")

    def refuse() -> int:
        raise OSError("no room")

    monkeypatch.setattr(root.kernel, "open", refuse)
    with pytest.raises(OSError, match="no room"):
        root.slots.grant(slot)
    monkeypatch.undo()
    assert os.listdir("/proc/self/fd") == before
    assert root.slots.give_back(slot)
