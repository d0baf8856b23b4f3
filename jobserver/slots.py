"""The pool of slots: one-byte tokens in a pipe, and receipts that outlive nobody.

Whoever wants to run work takes a token; it goes back when the work is over. The pipe is all that
is waited for, so every process that has its two ends shares the slots. A process that is killed
holding a token cannot put it back. So that it is not lost, three things are kept:

* *Bytes*, the tokens. One has no identity: what is lost is found by counting.
* *Receipts*. Who holds a slot holds a place, through a lock on a description of its own that the
  worker has a copy of. The kernel lets go of it when the last of them has ended.
* *The gate*, which is shared by those who give back, between the byte and the receipt.

An *audit* is alone in the gate, so no slot that is held comes back while it counts: `slots - bytes
in the pipe - receipts` bytes are missing, and it writes them (or drains what is too many). Who
takes needs no gate. It has the receipt before it reads the byte, and the bytes are counted first:
so a slot that is taken meanwhile may be counted twice, but never not at all. An audit knows nothing
but what the kernel tells it, so it may itself be killed at any step, and run again.
Nobody waits for the gate: who cannot enter comes back later, or leaves a byte to the next audit,
as if killed. So a process that is stopped within holds nobody up for ever.

A process that runs work holds a slot itself, and may lend it: a submission that would wait for ever
in a full tree runs on its submitter's own slot, since the submitter computes nothing meanwhile.
(GNU Make calls that slot the implicit one.) Lent down a chain it is still one slot, in use for as
long as one of the chain lives. So a place has *depths*:

    block of a slot:   place        place + 1      place + 2     ...
                       its holder   who it lent    who that one
                                    it to          lent it to

Each has a description of its own at its depth. A slot is in use while any depth of its block is
held; that makes receipts countable. A lender goes on when nobody is deeper than itself: should
the middle of a chain be killed, then whoever it had lent to still computes on that slot.

A lent slot is *relieved* when a real one has come: the receipt of whom it was lent to moves to a
block of its own (`relief`, chosen beforehand), and with it whatever that one lends later. It moves
through the description that lender and borrower share, so the borrower need not be asked. Only the
deepest of a chain is relieved, since what is deeper would stay behind.

Programs of another kind, make's clients, take bytes from the same pipe without a receipt. A process
that starts one `grants` it that, by a description at a place beyond those of all slots, the
*presence*, which the program and whatever it starts inherit. While anybody is present, an audit
changes nothing. Bytes that are missing may be with such programs. Bytes that are too many may be
lent: a program that waits (cc-rs 1.0.42 to 1.0.82, rustc -Zthreads) puts the slot on which it runs
into the pipe and later reads it back. When the last program has ended, an audit counts as before.
The program itself runs on a slot of its starter, whose receipt it inherits on the same description.
"""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Sequence
from typing import Callable, Final, Optional

from . import forks, worker
from .kernel import arrive, create
from .protocols import Grant, Kernel, Slot

# A token that is written must never wait, and no more than this many bytes are written at once.
# POSIX guarantees that a pipe holds them (limits.h; 4096 on Linux, 512 at least anywhere).
LIMIT: Final[int] = getattr(select, "PIPE_BUF", 512)

DEPTHS: Final = 1 << 16  # in a block: so often can one slot be lent on
PLACES: Final = 1 << 62  # all of them; the offset of a lock is a signed 64-bit number
PRESENCE: Final = 3 << 61  # beyond those of slots: of all who may hold bytes and no receipts

_TRIES: Final = 20  # to enter the gate, with a pause between; then the caller comes back later


class SlotPool:
    """The slots of one jobserver, as this process sees them.

    Not thread-safe: the engine calls it under its lock.
    """

    def __init__(self, identity: str, count: Optional[int], kernel: Kernel) -> None:
        self.identity = identity
        self.count = count
        self.kernel = kernel
        self.hindered: bool = False
        self.out: int = 0
        self._lent: Optional[Slot] = None
        # The description opened first is kept for the next slot: opening one takes longest.
        self._kept = -1
        self._kept_is_free = False
        self._place: Optional[int] = None  # of the next slot
        self._closed = False
        self._recovered = 0
        # Removes the fifo of the pool. Kept, as the interpreter's end is too late for an import.
        self._remove_fifo: Optional[Callable[[], None]] = None
        forks.reset_in_children(self)

    @classmethod
    def create(cls, count: int) -> SlotPool:
        """A new pool with `count` free slots. OSError when there are no descriptors for it."""
        from . import fifos

        fifo = fifos.make()
        try:
            kernel = create(fifo and fifo[:2])
            kernel.write(b"+" * count)
        except BaseException:
            if fifo:
                fifos.remove(fifo[2])
            raise
        pool = cls(os.urandom(16).hex(), count, kernel)
        if fifo:
            pool._remove_fifo = functools.partial(fifos.remove, fifo[2])
        return pool

    @classmethod
    def arrive(
        cls, identity: str, count: Optional[int], origin: str, descriptors: Sequence[int]
    ) -> SlotPool:
        """What was in another process; the descriptors are this process's own by now."""
        return cls(identity, count, arrive(descriptors, origin))

    @property
    def origin(self) -> str:
        """What another process needs besides the kernel's descriptors to have the same pool."""
        return self.kernel.directory

    @property
    def recovers(self) -> bool:
        return self.kernel.keeps_receipts

    @property
    def recovered(self) -> int:
        if not self._closed:
            self._recovered = self.kernel.recovered()
        return self._recovered

    def used(self) -> Optional[int]:
        """How many slots are not in the pipe."""
        return None if self.count is None else self.count - self.kernel.waiting()

    def fileno(self) -> int:
        """The descriptor that is readable when a slot may be had."""
        return self.kernel.fileno()

    def take(self) -> Optional[Slot]:
        """A free slot, or None; never waits. OSError when there is no descriptor for it."""
        kernel = self.kernel
        self.hindered = False
        receipt = self._open()
        if self._place is None:
            self._place = kernel.new_place()
        place = self._place
        token = b""
        try:
            # The receipt first: at no moment is the slot neither in the pipe nor held.
            kernel.lock(receipt, place)
            token = kernel.read()
        finally:
            if not token:
                kernel.unlock(receipt, place)
                self._close(receipt)
        if not token:
            return None
        # A place is used up by a slot only, lest an audit find one new place after another.
        self._place = None
        self.out += 1
        return Slot(token, place, None, receipt)

    def lend(self) -> Optional[Slot]:
        """The slot on which this process runs, if it has one that is not lent already."""
        kernel = self.kernel
        held = kernel.held
        if held is None or held[0] != self.identity or self._lent is not None:
            return None
        receipt = self._open()
        slot: Optional[Slot] = None
        try:
            # Alone: whoever lent us this slot must not relieve us of it meanwhile.
            if self._enter(kernel.exclude):
                try:
                    _, place, relief = held
                    if relief is not None and kernel.find(relief, relief + 1) is not None:
                        place = relief
                    deeper = place + 1
                    # Nobody is there, unless another pool of this process has lent it as well.
                    if deeper + 1 < _end(place) and self._is_free(deeper):
                        kernel.lock(receipt, deeper)
                        slot = Slot(b"", deeper, kernel.new_place(), receipt)
                finally:
                    kernel.leave()
        finally:
            if slot is None:
                self._close(receipt)
        self._lent = slot
        self.out += slot is not None
        return slot

    @property
    def lent(self) -> Optional[Slot]:
        return self._lent

    def is_lent(self, slot: Optional[Slot]) -> bool:
        return slot is not None and slot is self._lent

    def relieve(self, slot: Optional[Slot]) -> bool:
        """Have a free slot for work on a lent one, if that can be: whether it was so."""
        kernel = self.kernel
        self.hindered = False
        if slot is None or slot is not self._lent or slot.relief is None:
            return False
        if slot.receipt < 0:
            self.hindered = True  # the worker has ended, but not whom it had lent the slot to
            return False
        if not self._enter(kernel.share):
            return False
        try:
            if not self._is_free(slot.place + 1):
                self.hindered = True  # it has lent the slot on, and looks for another as we do
                return False
            # The byte first: a receipt without a byte would not end with this process, as the
            # worker has it too. A byte without a receipt is restored.
            token = kernel.read()
            if not token:
                return False
            kernel.lock(slot.receipt, slot.relief)
            # Last, lest there be a moment in which the worker holds nothing.
            kernel.unlock(slot.receipt, slot.place)
        finally:
            kernel.leave()
        slot.token, slot.place, slot.relief = token, slot.relief, None
        self._lent = None
        return True

    def open_receipt(self) -> int:
        """A description for a worker that serves, which holds nothing."""
        return self.kernel.open()

    def close_receipt(self, receipt: int) -> None:
        """Close what `open_receipt` made."""
        self.kernel.close(receipt)

    def hand_over(self, slot: Slot, receipt: int) -> None:
        """Have the description of a worker that serves hold a slot's place."""
        # First the one, then the other, lest there be a moment in which nobody holds it.
        self.kernel.lock(receipt, slot.place)
        self.kernel.unlock(slot.receipt, slot.place)
        if not slot.kept:
            self._close(slot.receipt)
        slot.receipt, slot.kept = receipt, True

    def grant(self, slot: Slot) -> Optional[Grant]:
        """Let a program of another kind, which is to run on this slot, draw on the others."""
        kernel = self.kernel
        opened: list[int] = []
        presence, entered = -1, False
        try:
            read, write, path = kernel.reopen()
            opened += read, write
            presence = kernel.open()
            # In the gate, lest an audit that has seen nobody present count while bytes move.
            entered = self._enter(kernel.share)
            if entered:
                try:
                    kernel.lock(presence, PRESENCE)
                finally:
                    kernel.leave()
                # The program inherits the receipt as well, and so its slot is in use while it
                # runs, though this process be killed.
                self.hand_over(slot, presence)
        finally:
            if not entered:
                if presence >= 0:
                    kernel.close(presence)
                for fd in opened:
                    forks.close(fd)
        return Grant(read, write, presence, path) if entered else None

    def withdraw(self, grant: Grant) -> None:
        """Close a grant; recover what its program has left behind, if nobody is left of it."""
        forks.close(grant.read)
        forks.close(grant.write)
        self.kernel.close(grant.presence)
        self.audit()

    def held(self, slot: Slot) -> worker.Held:
        """What a worker on this slot has to know of it, so that it can lend it on."""
        slot.told = True
        return self.identity, slot.place, slot.relief

    def give_back(self, slot: Slot, *, ended: bool = True) -> bool:
        """Free a slot. Without `ended`, only our part in it: the worker may still run.

        False for a lent slot on which somebody still runs whom a lost worker left behind.
        """
        if slot is self._lent:
            return self._return_lent(slot, ended)
        self.out -= 1
        entered = self._enter(self.kernel.share)
        try:
            if ended:
                # The byte first: killed in between, nothing is missing, for the receipt goes
                # with this process. Nobody else can be in the block but whom the worker lent
                # the slot to; then an audit restores the byte when those have ended. A worker
                # that serves has awaited them before it answered.
                if entered and (not slot.told or slot.kept or self._is_free(slot.place + 1)):
                    self.kernel.write(slot.token)
                self._release(slot, ended)
            else:
                self._release(slot, ended)
                if entered and self._is_free(slot.place):
                    self.kernel.write(slot.token)
        finally:
            if entered:
                self.kernel.leave()
        return True

    def places(self) -> frozenset[int]:
        """Where slots are held: it changes when one goes from one process to another."""
        return frozenset(self._blocks()) if self.recovers else frozenset()

    def audit(self) -> int:
        """Recover the slots of the dead: how many that were. None while others are in the gate."""
        kernel = self.kernel
        if self._closed or not self.recovers or not self._enter(kernel.exclude):
            return 0
        try:
            missing = self._missing()
            if missing > 0:
                # One write, so that it cannot be torn apart.
                kernel.write(b"+" * missing)
                kernel.note(missing)
            while missing < 0 and kernel.read():
                missing += 1
        finally:
            kernel.leave()
        if missing > 0:
            self._log("%d slots of processes that were killed are recovered", missing)
        return max(0, missing)

    def close(self) -> None:
        """Let go of the pipe. Other processes keep theirs."""
        if self._closed:
            return
        self.audit()
        if self.recovered:
            self._log("closed; %d slots had to be recovered", self._recovered)
        self._closed = True
        if self._kept_is_free:
            self.kernel.close(self._kept)
            self._kept_is_free = False
        self.kernel.shut()
        if self._remove_fifo is not None:
            self._remove_fifo()

    def after_fork(self) -> None:
        # What it took and lent is the parent's affair, and its descriptors are closed.
        self._lent = None
        self.out = 0
        self._kept = -1
        self._kept_is_free = False
        self._place = None

    def _enter(self, gate: Callable[[], bool]) -> bool:
        """Enter the gate; after a few tries, say that we were hindered."""
        self.hindered = False
        for _ in range(_TRIES):
            if gate():
                return True
            self.kernel.pause()
        self.hindered = True
        return False

    def _open(self) -> int:
        """A description that holds nothing."""
        if self._kept_is_free:
            self._kept_is_free = False
            return self._kept
        receipt = self.kernel.open()
        if self._kept < 0:
            self._kept = receipt
        return receipt

    def _close(self, receipt: int) -> None:
        """Part with a description that holds nothing, and of which nobody has a copy."""
        if receipt == self._kept and not self._closed:
            self._kept_is_free = True
        else:
            self.kernel.close(receipt)

    def _release(self, slot: Slot, ended: bool) -> None:
        """Let go of a slot's receipt."""
        if ended:
            # Not left to closing: children that have just been forked have copies, for a moment.
            self.kernel.unlock(slot.receipt, slot.place)
        receipt, slot.receipt = slot.receipt, -1
        if not ended:
            if receipt == self._kept:
                self._kept = -1
            self.kernel.close(receipt)
        elif not slot.kept:
            self._close(receipt)

    def _return_lent(self, slot: Slot, ended: bool) -> bool:
        if slot.receipt >= 0:
            self._release(slot, ended)
        if not self._is_free(slot.place):
            return False
        self._lent = None
        self.out -= 1
        return True

    def _is_free(self, place: int) -> bool:
        """Whether nobody holds the place or is deeper."""
        return self.kernel.find(place, _end(place)) is None

    def _missing(self) -> int:
        """How many bytes an audit restores; negative: how many it drains. Alone in the gate."""
        assert self.count is not None, "whose pool it is knows how many slots it has"
        # First, as programs that are present move bytes while we count; if none is, nobody does.
        if self.kernel.find(PRESENCE, PRESENCE + 1) is not None:
            return 0
        # Then the bytes: one that is taken meanwhile is counted twice, and never not at all.
        waiting = self.kernel.waiting()
        receipts = self._receipts()
        missing = self.count - waiting - receipts
        if missing < 0:
            # Whoever had a receipt and no byte yet should have read by now, or found nothing.
            self.kernel.pause()
            missing = min(0, self.count - self.kernel.waiting() - receipts)
        return missing

    def _receipts(self) -> int:
        """How many slots are held."""
        return len(self._blocks())

    def _blocks(self) -> list[int]:
        """The slots that are held: the ends of the blocks in which there is somebody."""
        held: list[int] = []
        spans = [(0, PLACES)]
        while spans:
            start, stop = spans.pop()
            found = self.kernel.find(start, stop) if start < stop else None
            if found is not None:
                # Which one is found is up to the kernel: Linux keeps them in no useful order.
                held.append(_end(found))
                spans += (start, _end(found) - DEPTHS), (_end(found), stop)
        return held

    def _log(self, text: str, number: int) -> None:
        # Who has not imported it has no handler for it; a worker should not pay for it.
        logging = sys.modules.get("logging")
        if logging is not None:
            logging.getLogger("jobserver").debug("slots %s: " + text, self.identity[:8], number)


def _end(place: int) -> int:
    """Where the block of a place ends."""
    return place - place % DEPTHS + DEPTHS
