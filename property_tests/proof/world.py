"""The kernel's objects, as far as slots use them: processes, descriptions, locks, a pipe.

What fcntl(2), pipe(7) and close(2) promise, and no more. A world is a value: `key` says what it
is, up to the names of places and descriptions, which nobody can tell apart.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Optional

from jobserver.joined import IMPLICIT
from jobserver.slots import DEPTHS, PRESENCE

# The descriptors that every process has of its slots; those of receipts come after them.
READ, WRITE, RECEIPTS, GATE, OUTER_READ, OUTER_WRITE = range(6)
FIRST_RECEIPT = 6

PIPE, RECEIPTS_FILE, GATE_FILE, OUTER_PIPE = "pipe", "receipts", "gate", "make's pipe"

SHARED, ALONE = "shared", "alone"

_IMPLICIT = IMPLICIT // DEPTHS  # the block of make's implicit slot


class Lives:
    """What threads may be at, each under a number.

    That is what a thread remembers, frozen into nested tuples (see `programs`), and the answers
    of the kernel to what it has asked since its current operation began.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._lives: list[tuple[Any, tuple[Any, ...]]] = []
        self._blocks: list[tuple[int, ...]] = []
        self._renamed: dict[tuple[int, Any], int] = {}

    def __getitem__(self, number: int) -> tuple[Any, tuple[Any, ...]]:
        return self._lives[number]

    def number(self, memory: Any, answers: tuple[Any, ...]) -> int:
        life = memory, answers
        found = self._numbers.get(life)
        if found is None:
            found = self._numbers[life] = len(self._lives)
            self._lives.append(life)
            self._blocks.append(tuple(dict.fromkeys(_blocks_in(life))))
        return found

    def blocks(self, number: int) -> tuple[int, ...]:
        """The blocks of the places in it, in their order."""
        return self._blocks[number]

    def renamed(self, number: int, mapping: dict[int, int]) -> int:
        """The same with other blocks."""
        blocks = self._blocks[number]
        names = tuple(mapping[block] for block in blocks)
        if names == blocks:
            return number
        key = number, names
        found = self._renamed.get(key)
        if found is None:
            memory, answers = _rename(self._lives[number], dict(zip(blocks, names)))
            found = self._renamed[key] = self.number(memory, answers)
        return found


class Description:
    """An open file description."""

    __slots__ = ("file", "places")

    def __init__(self, file: str, places: frozenset[int] = frozenset()) -> None:
        self.file = file
        self.places = places  # that it holds locked, shared


class Process:
    __slots__ = ("alive", "descriptors", "locks", "threads", "turnstile")

    def __init__(self, descriptors: dict[int, int], threads: tuple[int, ...]) -> None:
        self.alive = True
        self.descriptors = descriptors  # descriptor -> description
        self.locks: dict[str, str] = {}  # file -> SHARED or ALONE: record locks, of one byte
        self.threads = threads  # by the numbers of their `Lives`
        self.turnstile = False  # whether a thread of it is in there

    def copy(self) -> Process:
        new = Process.__new__(Process)
        new.alive = self.alive
        new.descriptors = dict(self.descriptors)
        new.locks = dict(self.locks)
        new.threads = self.threads
        new.turnstile = self.turnstile
        return new


class World:
    """Processes over one kernel."""

    __slots__ = ("bytes", "descriptions", "outer", "owed", "processes")

    def __init__(self) -> None:
        self.bytes = 0  # in the pipe
        self.outer = 0  # in make's, if the slots are make's
        self.owed = 0  # that programs had lent to the pipe when they were killed
        self.descriptions: dict[int, Description] = {}
        self.processes: list[Process] = []

    def copy(self) -> World:
        new = World.__new__(World)
        new.bytes = self.bytes
        new.outer = self.outer
        new.owed = self.owed
        new.descriptions = dict(self.descriptions)  # which are replaced, not changed
        new.processes = [process.copy() for process in self.processes]
        return new

    # What system calls do.

    def read(self, pid: int, fd: int) -> bool:  # noqa: ARG002 - there is one pipe
        had = self.bytes > 0
        self.bytes -= had
        return had

    def write(self, pid: int, count: int) -> None:  # noqa: ARG002
        self.bytes += count

    def waiting(self, pid: int) -> int:  # noqa: ARG002
        return self.bytes

    def splice(self, pid: int, source: int, target: int) -> bool:  # noqa: ARG002
        """Move a byte from one pipe to the other, if there is one."""
        taking = source == OUTER_READ
        had = (self.outer if taking else self.bytes) > 0
        self.outer -= had if taking else -had
        self.bytes += had if taking else -had
        return had

    def open(self, pid: int, fd: int) -> int:
        """What opening /proc/self/fd/N does."""
        file = self.descriptions[self.processes[pid].descriptors[fd]].file
        number = max(self.descriptions, default=0) + 1
        self.descriptions[number] = Description(file)
        descriptors = self.processes[pid].descriptors
        new = FIRST_RECEIPT
        while new in descriptors:
            new += 1
        descriptors[new] = number
        return new

    def close(self, pid: int, fd: int) -> None:
        process = self.processes[pid]
        number = process.descriptors.pop(fd)
        # Whichever descriptor of a file is closed, the process loses its record locks there.
        process.locks.pop(self.descriptions[number].file, None)
        if not any(number in other.descriptors.values() for other in self.processes):
            del self.descriptions[number]

    def lock(self, pid: int, fd: int, place: int) -> None:
        number = self.processes[pid].descriptors[fd]
        old = self.descriptions[number]
        self.descriptions[number] = Description(old.file, old.places | {place})

    def unlock(self, pid: int, fd: int, place: int) -> None:
        number = self.processes[pid].descriptors[fd]
        old = self.descriptions[number]
        self.descriptions[number] = Description(old.file, old.places - {place})

    def find(self, pid: int, fd: int, start: int, stop: int) -> Optional[int]:
        """A place that a description locks, other than that of the descriptor."""
        asking = self.processes[pid].descriptors[fd]
        found = [
            place
            for number, description in self.descriptions.items()
            if number != asking and description.file == self.descriptions[asking].file
            for place in description.places
            if start <= place < stop
        ]
        return max(found, default=None)

    def set_record_lock(self, pid: int, fd: int, kind: Optional[str]) -> bool:
        process = self.processes[pid]
        file = self.descriptions[process.descriptors[fd]].file
        if kind is None:
            process.locks.pop(file, None)
            return True
        for other in self.processes:
            there = other.locks.get(file)
            if other is not process and there is not None and ALONE in (there, kind):
                return False
        process.locks[file] = kind
        return True

    def fork(self, pid: int, thread: int) -> int:
        parent = self.processes[pid]
        self.processes.append(Process(dict(parent.descriptors), (thread,)))
        return len(self.processes) - 1

    def keep(self, pid: int, kept: int) -> None:
        """Close all receipts but one, as `forks` does it in a child."""
        for fd in list(self.processes[pid].descriptors):
            if fd >= FIRST_RECEIPT and fd != kept:
                self.close(pid, fd)

    def enter_turnstile(self, pid: int) -> bool:
        entered = not self.processes[pid].turnstile
        self.processes[pid].turnstile = True
        return entered

    def leave_turnstile(self, pid: int) -> None:
        self.processes[pid].turnstile = False

    def has_ended(self, pid: int, child: int) -> bool:  # noqa: ARG002
        return not self.processes[child].alive

    def end(self, pid: int) -> None:
        """The process is killed, or exits: the kernel closes everything."""
        process = self.processes[pid]
        process.alive = False
        process.threads = ()
        process.turnstile = False
        for fd in list(process.descriptors):
            self.close(pid, fd)

    def new_block(self, lives: Lives) -> int:
        """A block that nobody has, with a gap below it."""
        return max((block for block in self._blocks(lives) if block < _IMPLICIT), default=0) + 2

    # What a world is.

    def _blocks(self, lives: Lives) -> set[int]:
        """Those with a place that somebody holds or remembers."""
        held = [place for each in self.descriptions.values() for place in each.places]
        used = {place // DEPTHS for place in held if is_place(place)}
        for process in self.processes:
            for thread in process.threads:
                used.update(lives.blocks(thread))
        return used

    def canonical(self, lives: Lives) -> tuple[World, Any]:
        """The world with its places and descriptions renumbered; its key.

        Blocks keep their order, for who is counting has passed some and not the others. They keep
        a gap between them as well, and so gaps stay gaps.
        """
        used = self._blocks(lives)
        blocks = {block: 2 * name for name, block in enumerate(sorted(used - {_IMPLICIT}), 1)}
        blocks[_IMPLICIT] = _IMPLICIT  # which everybody knows
        numbers: dict[int, int] = {}
        for process in self.processes:
            for _, number in sorted(process.descriptors.items()):
                numbers.setdefault(number, len(numbers) + 1)
        new = World()
        new.bytes = self.bytes
        new.outer = self.outer
        new.owed = self.owed
        key: list[Any] = [self.bytes, self.outer, self.owed]
        for old, name in numbers.items():
            description = self.descriptions[old]
            places = frozenset(
                blocks[place // DEPTHS] * DEPTHS + place % DEPTHS if is_place(place) else place
                for place in description.places
            )
            new.descriptions[name] = Description(description.file, places)
            key.append((description.file, *sorted(places)))
        for process in self.processes:
            copy = process.copy()
            copy.descriptors = {fd: numbers[old] for fd, old in process.descriptors.items()}
            copy.threads = tuple(lives.renamed(thread, blocks) for thread in process.threads)
            new.processes.append(copy)
            key.append(
                (
                    copy.alive,
                    copy.threads,
                    copy.turnstile,
                    *sorted(copy.descriptors.items()),
                    *sorted(copy.locks.items()),
                )
            )
        return new, tuple(key)


def is_place(value: object) -> bool:
    """Numbers as large as these are places of slots: nothing else is counted so far."""
    return type(value) is int and DEPTHS <= value < PRESENCE


def _blocks_in(frozen: tuple[Any, ...]) -> Generator[int, None, None]:
    for item in frozen:
        if isinstance(item, tuple):
            yield from _blocks_in(item)
        elif is_place(item):
            yield item // DEPTHS


def _rename(frozen: tuple[Any, ...], names: dict[int, int]) -> tuple[Any, ...]:
    return tuple(
        _rename(item, names)
        if isinstance(item, tuple)
        else names[item // DEPTHS] * DEPTHS + item % DEPTHS
        if is_place(item)
        else item
        for item in frozen
    )
