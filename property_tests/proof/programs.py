"""What the processes of a small tree do with their slots, one operation after the other.

An operation is a function that runs the library's own code, over calls that are answered from what
the kernel has answered before. At the first call that has no answer yet it is given up, with
everything that it changed; once there is an answer it is run again from its beginning. So what a
thread is at is what it remembered when its operation began, and the answers since.
"""

from __future__ import annotations

import contextlib
import fcntl
import types
from collections.abc import Generator
from typing import Any, Callable, Optional
from unittest import mock

import attrs

from jobserver import forks as forks_room
from jobserver import joined as joined_room
from jobserver import kernel as kernel_room
from jobserver import slots as slots_room
from jobserver.joined import JoinedKernel, JoinedPool
from jobserver.kernel import OfdKernel
from jobserver.protocols import Grant, Slot
from jobserver.slots import SlotPool

from .world import ALONE, GATE, OUTER_READ, OUTER_WRITE, READ, RECEIPTS, SHARED, WRITE

IDENTITY = "pool"

# What a thread is there for.
ROOT, WORKER, HELPER, THREAD = "root", "worker", "helper", "thread"
PROGRAM, HEIR = "program", "heir"  # one that takes bytes by itself, and whom it leaves behind


Request = tuple[Any, ...]


class Suspend(BaseException):
    """An operation has asked what has not been answered yet."""


class Calls:
    """Answers the calls of one operation."""

    def __init__(self) -> None:
        self.request: Optional[Request] = None
        self._answers: tuple[Any, ...] = ()
        self._position = 0

    def start(self, answers: tuple[Any, ...]) -> None:
        self.request = None
        self._answers = answers
        self._position = 0

    def ask(self, *request: Any) -> Any:
        # A `finally` asks again while what was suspended is given up.
        if self.request is not None or self._position == len(self._answers):
            self.request = self.request or request
            raise Suspend
        self._position += 1
        return self._answers[self._position - 1]


calls = Calls()


class Memory:
    """What a thread knows; frozen between its operations."""

    def __init__(self, role: str, pool: SlotPool) -> None:
        self.operation = "compute"
        self.role = role
        self.pool = pool
        self.held: Any = None  # as `worker.held`
        self.receipt = -1  # the descriptor that came with it
        self.new: Optional[Slot] = None  # that it has taken and put nobody on yet
        self.runs: list[list[Any]] = []  # the process and the slot of each worker
        self.submissions = 0  # that it may still do
        self.below: tuple[int, ...] = ()  # those of its workers, of theirs, and so on
        self.commands = 0  # programs that it may still run
        self.inside = 0  # those of each of its workers
        self.running = -1  # the process of the program that it waits for
        self.presence = -1  # the descriptor that it has with its program
        self.takes = 0  # bytes that a program may still take
        self.gives = 0  # how often a program may still lend the slot on which it runs to the pipe
        self.tokens = 0  # that it has; -1: it has lent that slot, and waits to read it back
        self.heirs = 0  # processes that it may still leave behind
        self.audits = 0  # that it may still do, besides those that waiting makes
        self.helpers = 0  # that it may still fork: processes that hold nothing
        self.blind = False  # whether an answer may be all that is known of a worker's end


def freeze(memory: Memory) -> Any:
    seen: list[Slot] = []

    def ice(item: Any) -> Any:
        if isinstance(item, Slot):
            for number, slot in enumerate(seen):
                if slot is item:
                    return ("again", number)
            seen.append(item)
            return ("slot", *attrs.astuple(item))
        if isinstance(item, SlotPool):
            variables = sorted(
                (name, ice(value)) for name, value in vars(item).items() if name != "kernel"
            )
            return (type(item).__name__, tuple(variables))
        if isinstance(item, list):
            return ("list", tuple(ice(part) for part in item))
        if isinstance(item, tuple):
            return ("tuple", tuple(ice(part) for part in item))
        assert item is None or isinstance(item, (int, str, bytes)), item
        return item

    return tuple((name, ice(value)) for name, value in vars(memory).items())


def thaw(frozen: Any) -> Memory:
    seen: list[Slot] = []

    def water(item: Any) -> Any:
        if not isinstance(item, tuple):
            return item
        kind, *rest = item
        if kind == "again":
            return seen[rest[0]]
        if kind == "slot":
            slot = Slot(*rest)
            seen.append(slot)
            return slot
        if kind in ("SlotPool", "JoinedPool"):
            made = make_pool(None, joined=kind == "JoinedPool")
            pool = type(made).__new__(type(made))
            pool.kernel = made.kernel
            for name, value in rest[0]:
                setattr(pool, name, water(value))
            return pool
        parts = [water(part) for part in rest[0]]
        return parts if kind == "list" else tuple(parts)

    memory = Memory.__new__(Memory)
    for name, value in frozen:
        setattr(memory, name, water(value))
    return memory


def make_pool(count: Optional[int], *, joined: bool, implicit: bool = False) -> SlotPool:
    """A pool over the descriptors that every process has."""
    if not joined:
        return SlotPool(
            IDENTITY, count, OfdKernel(read=READ, write=WRITE, gate=GATE, receipts=RECEIPTS)
        )
    descriptors = READ, WRITE, GATE, RECEIPTS, OUTER_READ, OUTER_WRITE
    return JoinedPool(IDENTITY, count, JoinedKernel(descriptors, 1), "", implicit=implicit)


# The library's modules see these instead of the standard library's.


def _lockf(fd: int, how: int, length: int) -> None:
    assert length == 1, "one byte is modelled"
    wanted = SHARED if how & fcntl.LOCK_SH else ALONE if how & fcntl.LOCK_EX else None
    if not calls.ask("set_record_lock", fd, wanted):
        raise BlockingIOError


def _fcntl(fd: int, command: int, packed: bytes) -> bytes:
    kind, _, start, length, _ = kernel_room._FLOCK.unpack(packed)
    if command == fcntl.F_OFD_GETLK:
        found = calls.ask("find", fd, start, start + length)
        if found is None:
            return kernel_room._FLOCK.pack(fcntl.F_UNLCK, 0, 0, 0, 0)
        return kernel_room._FLOCK.pack(fcntl.F_RDLCK, 0, found, 1, 0)
    assert command == fcntl.F_OFD_SETLK, "nothing else is modelled"
    calls.ask("lock" if kind == fcntl.F_RDLCK else "unlock", fd, start)
    return packed


def _read(fd: int, _: int) -> bytes:
    if calls.ask("read", fd):
        return b"+"
    raise BlockingIOError


def _splice(source: int, target: int) -> int:
    if calls.ask("splice", source, target):
        return 1
    raise BlockingIOError


class _Lock:
    """Of threads: the one in the turnstile."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002
        return bool(calls.ask("enter_turnstile"))

    def release(self) -> None:
        calls.ask("leave_turnstile")


_os = types.SimpleNamespace(
    O_RDWR=0,
    O_CLOEXEC=0,
    read=_read,
    write=lambda _, data: calls.ask("write", len(data)),
    close=lambda fd: calls.ask("close", fd),
    pread=lambda *_: b"",
    pwrite=lambda *_: None,
)
_fcntl_module = types.SimpleNamespace(
    fcntl=_fcntl,
    lockf=_lockf,
    ioctl=lambda *_: calls.ask("waiting").to_bytes(4, "little"),
    **{name: value for name, value in vars(fcntl).items() if name.isupper()},
)
_forks = types.SimpleNamespace(
    open_file=lambda path, _: calls.ask("open", int(path.rpartition("/")[2])),
    close=_os.close,
    reset_in_children=lambda _: None,
    behind=False,
)
_worker = types.SimpleNamespace(held=None)


def _new_place(_: OfdKernel) -> int:
    return int(calls.ask("new_place"))


def _reopen(_: OfdKernel) -> tuple[int, int, str]:
    """Who has the pipe in a description of its own reads and writes as anybody else."""
    return READ, WRITE, ""


@contextlib.contextmanager
def simulated() -> Generator[None, None, None]:
    """Have the library's code ask `calls` instead of the kernel, within."""
    turnstile: Any = kernel_room._Turnstile()
    turnstile._lock = _Lock()
    replaced: dict[str, Any] = {
        "os": _os,
        "fcntl": _fcntl_module,
        "time": types.SimpleNamespace(sleep=lambda _: None),
        "sys": types.SimpleNamespace(byteorder="little"),
        "forks": _forks,
        "worker": _worker,
        "_turnstile": turnstile,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(kernel_room, **replaced))
        stack.enter_context(mock.patch.object(OfdKernel, "new_place", _new_place))
        # Pipes of which nobody could fill all pages.
        pages: dict[str, Any] = {"_pages": lambda _: 16, "_splice": _splice}
        stack.enter_context(mock.patch.multiple(joined_room, **pages))
        stack.enter_context(mock.patch.object(OfdKernel, "reopen", _reopen))
        stack.enter_context(mock.patch.object(forks_room, "close"))
        # More tries to enter the gate are more of the same.
        stack.enter_context(mock.patch.object(slots_room, "_TRIES", 1))
        yield


# Operations.


def begin(me: Memory) -> str:
    """A forked child closes what is its parent's alone, before anything else."""
    calls.ask("keep", me.receipt)
    return me.role if me.role in (PROGRAM, HEIR) else "compute"


def compute(me: Memory) -> str:
    choices = ["end"]
    choices += ["take"] * (me.submissions > 0)
    choices += ["command"] * (me.commands > 0)
    choices += ["look"] * (me.audits > 0)
    choices += ["help"] * (me.helpers > 0)
    return choices[calls.ask("choose", len(choices))] if len(choices) > 1 else "end"


def look(me: Memory) -> str:
    me.audits -= 1
    me.pool.audit()
    return "compute"


def help_(me: Memory) -> str:
    """Fork a process that has nothing to do with slots, but is a copy of this one at first."""
    me.helpers -= 1
    calls.ask("fork", freeze(_child(me, HELPER)))
    return "compute"


def take(me: Memory) -> str:
    """`submit` without a timeout: a free slot, or the own one, or what an audit finds."""
    me.new = me.pool.take()
    return "launch" if me.new is not None else "lend"


def lend(me: Memory) -> str:
    me.new = me.pool.lend()
    return "launch" if me.new is not None else "audit"


def audit(me: Memory) -> str:
    me.pool.audit()
    return "reclaim"


def reclaim(me: Memory) -> str:
    """While it waits for a slot, a process moves along what it has submitted."""
    for run in me.runs:
        if _has_returned(me, run):
            me.runs.remove(run)
            break
    return "take"


def command(me: Memory) -> str:
    """`run`: on the own slot, as nothing else is done on it meanwhile, or on a free one."""
    me.new = me.pool.lend()
    return "grant" if me.new is not None else "take for command"


def take_for_command(me: Memory) -> str:
    me.new = me.pool.take()
    return "grant" if me.new is not None else "look for command"


def look_for_command(me: Memory) -> str:
    me.pool.audit()
    return "command"


def grant(me: Memory) -> str:
    assert me.new is not None, "it was taken or lent just now"
    granted = me.pool.grant(me.new)
    if granted is None:
        return "grant"
    me.presence = granted.presence
    return "start"


def start(me: Memory) -> str:
    me.commands -= 1
    child = _child(me, PROGRAM)
    child.receipt, child.takes, child.heirs = me.presence, me.takes, 1
    child.gives = me.gives
    me.running = calls.ask("fork", freeze(child))
    return "wait for command"


def wait_for_command(me: Memory) -> str:
    return "command has ended" if calls.ask("has_ended", me.running) else "wait for command"


def command_has_ended(me: Memory) -> str:
    assert me.new is not None, "the slot of the command"
    me.pool.give_back(me.new)
    me.new = None
    return "withdraw"


def withdraw(me: Memory) -> str:
    presence, me.presence, me.running = me.presence, -1, -1
    me.pool.withdraw(Grant(READ, WRITE, presence, ""))
    return "compute"


def program(me: Memory) -> str:
    """Take bytes and write others back, as make does: without the gate, without receipts."""
    if me.tokens < 0:
        return "take back as program"
    choices = ["end of program"] * (not me.tokens)
    choices += ["take as program"] * (me.takes > 0)
    choices += ["return as program"] * (me.tokens > 0)
    choices += ["lend as program"] * (me.gives > 0 and not me.tokens)
    choices += ["leave an heir"] * (me.heirs > 0)
    return choices[calls.ask("choose", len(choices))] if len(choices) > 1 else choices[0]


def take_as_program(me: Memory) -> str:
    me.takes -= 1
    me.tokens += bool(calls.ask("read", READ))
    return "program"


def return_as_program(me: Memory) -> str:
    calls.ask("write", 1)
    me.tokens -= 1
    return "program"


def lend_as_program(me: Memory) -> str:
    """As cc-rs and rustc do while they wait: others may have the slot on which it runs."""
    me.gives -= 1
    calls.ask("write", 1)
    me.tokens = -1
    return "program"


def take_back_as_program(me: Memory) -> str:
    me.tokens += bool(calls.ask("read", READ))
    return "program"


def leave_an_heir(me: Memory) -> str:
    me.heirs -= 1
    child = _child(me, HEIR)
    child.receipt = me.receipt
    calls.ask("fork", freeze(child))
    return "program"


def launch(me: Memory) -> str:
    slot, me.new = me.new, None
    assert slot is not None, "it was taken or lent just now"
    me.submissions -= 1
    child = _child(me, WORKER)
    child.held = me.pool.held(slot)
    child.receipt = slot.receipt
    child.commands, child.takes, child.gives = me.inside, me.takes, me.gives
    if me.below:
        child.submissions, *below = me.below
        child.below = tuple(below)
    me.runs.append([calls.ask("fork", freeze(child)), slot])
    return "lent" if me.pool.is_lent(slot) else "compute"


def lent(me: Memory) -> str:
    """Blocked in `submit` until the work on the lent slot is over, or has a slot of its own."""
    if _has_returned(me, me.runs[-1]):
        me.runs.pop()
        return "compute"
    return "relieve"


def relieve(me: Memory) -> str:
    return "compute" if me.pool.relieve(me.runs[-1][1]) else "look while lent"


def look_while_lent(me: Memory) -> str:
    me.pool.audit()
    return "lent"


def end(me: Memory) -> str:
    """Wait for whoever still works for it; then close, and exit."""
    if me.runs:
        if _has_returned(me, me.runs[0]):
            me.runs.pop(0)
        return "end"
    return "exit" if me.role == THREAD else "close"


def close(me: Memory) -> str:
    me.pool.close()
    return "exit"


def exit_(me: Memory) -> str:  # noqa: ARG001
    calls.ask("exit")
    raise AssertionError("nobody answers")


def _child(me: Memory, role: str) -> Memory:
    child = thaw(freeze(me))
    child.pool.after_fork()
    child.operation = "begin"
    child.role = role
    child.held, child.receipt, child.new, child.runs = None, -1, None, []
    child.submissions, child.below, child.audits, child.helpers = 0, (), 0, 0
    child.commands, child.inside, child.running, child.presence = 0, 0, -1, -1
    child.takes, child.gives, child.tokens, child.heirs = 0, 0, 0, 0
    return child


def _has_returned(me: Memory, run: list[Any]) -> bool:
    """Whether a worker has ended and its slot is back."""
    pid, slot = run
    if calls.ask("has_ended", pid):
        return me.pool.give_back(slot)
    return me.blind and calls.ask("has_answered", pid) and me.pool.give_back(slot, ended=False)


OPERATIONS: dict[str, Callable[[Memory], str]] = {
    "begin": begin,
    "compute": compute,
    "look": look,
    "help": help_,
    "take": take,
    "lend": lend,
    "audit": audit,
    "reclaim": reclaim,
    "command": command,
    "take for command": take_for_command,
    "look for command": look_for_command,
    "grant": grant,
    "start": start,
    "wait for command": wait_for_command,
    "command has ended": command_has_ended,
    "withdraw": withdraw,
    PROGRAM: program,
    "take as program": take_as_program,
    "lend as program": lend_as_program,
    "take back as program": take_back_as_program,
    "return as program": return_as_program,
    "leave an heir": leave_an_heir,
    "end of program": exit_,
    HEIR: exit_,
    "launch": launch,
    "lent": lent,
    "relieve": relieve,
    "look while lent": look_while_lent,
    "end": end,
    "close": close,
    "exit": exit_,
}


def next_request(memory: Any, answers: tuple[Any, ...]) -> tuple[Optional[Request], Any]:
    """What a thread asks next; or None, and what it remembers after its operation."""
    me = thaw(memory)
    calls.start(answers)
    _worker.held = me.held
    kernel_room._turnstile._inside = None  # where a thread was given up
    kernel_room._turnstile._gates.clear()
    try:
        me.operation = OPERATIONS[me.operation](me)
    except Suspend:
        return calls.request, None
    return None, freeze(me)


# Of a worker that computes nothing, as somebody else does so on its slot.
_BLOCKED = ("lent", "relieve", "look while lent")
_BLOCKED_BY_COMMAND = ("start", "wait for command", "command has ended")


def computing(memory: Any) -> int:
    """On how many slots who remembers this computes, or is about to, or has just done so."""
    me = dict(memory)
    if me["role"] == PROGRAM:
        return 1 + int(me["tokens"])
    if me["role"] != WORKER or me["operation"] in _BLOCKED + _BLOCKED_BY_COMMAND:
        return 0
    if me["operation"] == "launch":
        return int(bool(me["new"][1]))  # a lent slot has no token
    return int(not (me["blind"] and has_answered(memory)))


def owes(memory: Any) -> bool:
    """Whether a program has lent its slot to the pipe; killed now, it leaves a byte too many."""
    return int(dict(memory)["tokens"]) < 0


def has_answered(memory: Any) -> bool:
    """Whether a worker has sent its result, and only goes on to end."""
    return dict(memory)["operation"] in ("end", "close", "exit")


def is_idle(memory: Any) -> bool:
    """Whether who remembers this holds no slot."""
    me = dict(memory)
    has_slot = me["role"] in (WORKER, PROGRAM, HEIR)
    has_slot = has_slot or me["new"] is not None or me["runs"] != ("list", ())
    return not has_slot and me["presence"] == -1


def is_newborn(memory: Any) -> bool:
    """Whether it still has copies of whatever its parent had."""
    return bool(dict(memory)["operation"] == "begin")
