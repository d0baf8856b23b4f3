"""What comes of each use of an executor: concurrent.futures' semantics, on a number of slots.

A model that predicts and never looks. Time does not pass in it: work is held until it is told how
to end, so after each step everything is as it stays until the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Optional

import attrs

from . import gates

# What comes of a call: "value" and the value, or the exception's name and what identifies it.
Outcome = tuple[object, ...]

# What callbacks do.
DEEDS: Final = ("notes", "raises", "submits", "cancels", "shuts down")
PLAIN: Final = DEEDS[:2]  # what may be done in any order by callbacks of several futures

# Work: "held" until it is told how to end, or what becomes of it by itself.
TASKS: Final = (
    "held",
    "quick",
    "is not picklable",
    "raises when loaded",
    "exits when loaded",
    "dies when loaded",
)

_LOST: Final = "LostResult, BrokenProcessPool"
_CLOSED: Final[Outcome] = ("RuntimeError", "cannot schedule new futures after shutdown")
_BROKEN: Final[Outcome] = ("BrokenProcessPool",)

# What comes of work that never begins, by its task.
_UNLOADED: Final[dict[str, Outcome]] = {
    "is not picklable": ("ValueError", "not picklable"),
    "raises when loaded": ("ValueError", "raises when loaded", "RemoteTraceback"),
    "exits when loaded": ("SystemExit", 7, "RemoteTraceback"),
    "dies when loaded": (_LOST, -9, None),
}


def lost(ending: str) -> Optional[Outcome]:
    """What comes of all calls of a piece of work that ends so; None if the others go on."""
    ends: dict[str, Outcome] = {
        "dies": (_LOST, -9, None),
        "leaves": (_LOST, 7, None),
        "interrupts": ("KeyboardInterrupt",),
    }
    return ends.get(ending)


def outcome_of(ending: str, number: int) -> Outcome:
    """What comes of a call that ends so."""
    answers: dict[str, Outcome] = {
        "returns": ("value", number),
        "raises": ("ValueError", number, "RemoteTraceback"),
        "exits": ("SystemExit", 7, "RemoteTraceback"),
        "returns much": ("value", gates.much(number)),
        "returns an error": ("value", "ValueError", number),
        "returns what is not picklable": ("ValueError", "not picklable"),
        "raises what is not picklable": ("ValueError", "not picklable"),
        "returns what is not reconstructable": ("RuntimeError", "not reconstructable"),
    }
    return answers[ending]


@attrs.frozen
class Callback:
    """A callback, and the number of the work that it submits or cancels."""

    deed: str = "notes"
    number: int = -1


@attrs.define(eq=False)
class Piece:
    """A submission: a call, or a chunk of calls with numbers that follow on its own."""

    number: int
    task: str = "held"
    calls: Optional[int] = None  # of a chunk
    mapped: bool = False
    state: str = "PENDING"  # then RUNNING, FINISHED or CANCELLED
    outcome: Outcome = ()
    endings: list[Outcome] = attrs.field(factory=list[Outcome])  # of a chunk's calls
    callbacks: list[Callback] = attrs.field(factory=list[Callback])
    called: int = 0  # callbacks that were run, or are

    @property
    def done(self) -> bool:
        return self.state in ("FINISHED", "CANCELLED")

    @property
    def plain(self) -> bool:
        """Whether it does not matter when its callbacks run."""
        return all(callback.deed in PLAIN for callback in self.callbacks)


class Model:
    """An executor, and what else runs on its slots."""

    def __init__(self, slots: int, initializer: Optional[str] = None) -> None:
        self.free: int = slots
        self.initializer = initializer
        self.accepted: int = 0  # by this executor
        self.pieces: dict[int, Piece] = {}
        self.pending: deque[Piece] = deque()
        self.running: list[Piece] = []
        self.begun: dict[int, bool] = {}  # pieces whose work was reached: whether initialized
        self.direct: dict[int, int] = {}  # submitted to the Jobserver itself: what they consume
        self.closing: bool = False
        self.broken: bool = False
        self.forgotten: bool = False
        self.log: list[Outcome] = []  # what callbacks did; sorted out by piece

    def successor(self, initializer: Optional[str]) -> Model:
        """Another executor in the place of one that has ended."""
        made = Model(self.free, initializer)
        made.pieces, made.begun, made.log = self.pieces, self.begun, self.log
        made.direct = self.direct
        return made

    @property
    def ended(self) -> bool:
        return self.closing and not (self.pending or self.running)

    @property
    def refusal(self) -> Optional[Outcome]:
        """What comes of a submission, if it is not accepted."""
        if self.broken and not self.forgotten:
            return _BROKEN
        return _CLOSED if self.closing else None

    @property
    def held(self) -> list[Piece]:
        """What runs until it is told how to end."""
        return [piece for piece in self.running if piece.number in self.begun]

    @property
    def state(self) -> str:
        return "broken" if self.broken else "shutdown" if self.closing else "active"

    # What users do.

    def submit(self, piece: Piece) -> Piece:
        """Accept a piece of work: see `refusal`. It runs once `launch` is called."""
        self.accepted += 1
        self.pieces[piece.number] = piece
        self.pending.append(piece)
        return piece

    def cancel(self, piece: Piece) -> bool:
        if piece.state == "PENDING":
            if piece in self.pending:
                self.pending.remove(piece)
            self._finish(piece, "CANCELLED", ("CancelledError",))
        return piece.state == "CANCELLED"

    def add_done_callback(self, piece: Piece, callback: Callback) -> None:
        piece.callbacks.append(callback)
        if piece.done:
            self._call(piece)

    def close(self, *, cancel: bool) -> None:
        self.closing = True
        for piece in list(self.pending) if cancel else ():
            self.cancel(piece)

    def forget(self) -> None:
        """Nobody has the executor any more."""
        self.forgotten = True
        self.close(cancel=False)

    def end(self, piece: Piece, ending: str) -> None:
        """Held work is told how to end."""
        gone = lost(ending)
        if gone is None and piece.calls is not None:
            rest = range(piece.number + 1, piece.number + piece.calls)
            piece.endings = [outcome_of(ending, piece.number)]
            piece.endings += [outcome_of("returns", number) for number in rest]
            gone = ("value", "a chunk")
        self._leave(piece, gone or outcome_of(ending, piece.number))

    def kill(self, piece: Piece, signum: int) -> None:
        self._leave(piece, (_LOST, -signum, None))

    def fail_initializers(self) -> None:
        """Those that wait fail; with the first of them, all that is pending."""
        self.broken = True
        pending = list(self.pending)
        self.pending.clear()
        for piece in pending:
            if not piece.done:  # cancelled by a callback of another
                self._finish(piece, "FINISHED", _BROKEN)
        for piece in list(self.running):
            self._leave(piece, _BROKEN)

    def submit_direct(self, number: int, consume: int) -> bool:
        """Submit to the Jobserver, with no time to wait; whether it is accepted."""
        accepted = self.free >= consume
        if accepted:
            self.free -= consume
            self.direct[number] = consume
            self.begun[number] = False
        return accepted

    def end_direct(self, number: int) -> None:
        self.free += self.direct.pop(number)

    # What the executor does.

    def launch(self) -> None:
        """Run the oldest pending work, as much as there are slots."""
        while self.pending and self.free:
            piece = self.pending.popleft()
            piece.state = "RUNNING"
            self.running.append(piece)
            self.free -= 1
            if piece.task in _UNLOADED:
                self._leave(piece, _UNLOADED[piece.task])
            elif self.initializer != "fails":
                self.begun[piece.number] = self.initializer is not None
                if piece.task == "quick":
                    self.end(piece, "returns")

    def _leave(self, piece: Piece, outcome: Outcome) -> None:
        """Its slot is back before anybody learns of its end."""
        self.running.remove(piece)
        self.free += 1
        self._finish(piece, "FINISHED", outcome)

    def _finish(self, piece: Piece, state: str, outcome: Outcome) -> None:
        piece.state, piece.outcome = state, outcome
        self._call(piece)

    def _call(self, piece: Piece) -> None:
        while piece.called < len(piece.callbacks):
            seqno = piece.called
            piece.called += 1
            callback = piece.callbacks[seqno]
            self.log.append((piece.number, seqno, self._do(callback)))

    def _do(self, callback: Callback) -> Outcome:
        if callback.deed == "submits":
            return self._submit_from_callback(callback.number)
        if callback.deed == "cancels":
            return "value", self.cancel(self.pieces[callback.number])
        if callback.deed == "shuts down":
            self.close(cancel=False)
        return "value", None

    def _submit_from_callback(self, number: int) -> Outcome:
        refusal = self.refusal
        if refusal is None:
            self.submit(Piece(number))
        return refusal or ("value", None)


class Map:
    """The iterator over the results of a map."""

    def __init__(self, model: Model, pieces: Iterable[Piece], *, expired: bool) -> None:
        self.expired = expired
        self.started: bool = False
        self.ended: bool = False
        self._model = model
        self._waiting = deque(pieces)  # not submitted
        self._submitted: deque[Piece] = deque()
        self._ready: deque[Outcome] = deque()  # of the piece whose results are yielded

    def begin(self, buffersize: Optional[int]) -> Optional[Outcome]:
        """Submit as many as there may be; what comes of the call when it is refused."""
        for _ in range(min(len(self._waiting), buffersize or len(self._waiting))):
            refusal = self._submit()
            if refusal is not None:
                return refusal
        return None

    def _submit(self) -> Optional[Outcome]:
        """Submit what is next, if there is something; its refusal."""
        if not self._waiting or self._model.refusal is not None:
            return self._model.refusal if self._waiting else None
        self._submitted.append(self._model.submit(self._waiting.popleft()))
        return None

    @property
    def awaited(self) -> Optional[Piece]:
        """Whose end the next result has to wait for."""
        if self.ended or self._ready or not self._submitted or self._submitted[0].done:
            return None
        return self._submitted[0]

    @property
    def has_pending(self) -> bool:
        """Whether some of it would be cancelled if it ended now."""
        return any(piece.state == "PENDING" for piece in self._submitted)

    @property
    def has_more(self) -> bool:
        """Whether some of it is not submitted yet."""
        return bool(self._waiting)

    @property
    def goes_on(self) -> bool:
        """Whether what is next can still be submitted."""
        return not self._waiting or self._model.refusal is None

    def next(self) -> Outcome:
        self.started = True
        if not self._ready:
            if self.ended or not self._submitted:
                return self._end("StopIteration")
            head = self._submitted[0]
            if not head.done:
                assert self.expired, "it waits"
                return self._end("TimeoutError")
            if head.outcome[0] != "value":
                return self._end(*head.outcome)
            self._submitted.popleft()
            self._ready.extend(head.endings or [head.outcome])
            refusal = self._submit()
            if refusal is not None:
                return self._end(*refusal)
        outcome = self._ready.popleft()
        return outcome if outcome[0] == "value" else self._end(*outcome)

    def abandon(self) -> None:
        """Nobody has the iterator any more. One that was never asked cancels nothing."""
        if not self.started:
            self._submitted.clear()
        self._end()

    def _end(self, *outcome: object) -> Outcome:
        if not self.ended:
            self.ended = True
            self._ready.clear()
            for piece in self._submitted:
                self._model.cancel(piece)
        return outcome
