"""The mutants that no test finds, and why that is well: they are equivalent, or harmless.

They are not tried, and count as survivors. One that is no longer there fails the run.
"""

from __future__ import annotations

from typing import Protocol

import attrs


class Change(Protocol):
    """A mutant, by what can be said of it without line numbers."""

    @property
    def module(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def was(self) -> tuple[str, ...]: ...
    @property
    def becomes(self) -> tuple[str, ...]: ...


@attrs.frozen
class Accepted:
    """Lines of a function (of several: joined by newlines), and what they may become."""

    module: str
    function: str
    was: str
    becomes: tuple[str, ...]
    reason: str

    def covers(self, mutant: Change) -> bool:
        return (self.module, self.function, self.was) == (
            mutant.module,
            mutant.function,
            "\n".join(mutant.was),
        ) and "\n".join(mutant.becomes) in self.becomes


A_SIZE = "a size that nothing depends on: a little more or less is as good"
ANY_NEGATIVE = "any negative number says that there is none"
MORE = "it accepts more than is asked for"
NONE_IS_FALSE = "None is false as well"

ACCEPTED = (
    Accepted(
        "future",
        "_settle",
        "return True",
        ("pass",),
        "the engine finds the same; this spares it the look",
    ),
    Accepted(
        "future",
        "load",
        "_release(run)",
        ("pass",),
        "the other of the two does it; there are two for an interrupt between",
    ),
    Accepted(
        "server",
        "<module>",
        "@attrs.frozen(init=False, eq=False, repr=False, getstate_setstate=False)",
        (
            "@attrs.frozen(eq=False, repr=False, getstate_setstate=False)",
            "@attrs.frozen(init=False, eq=False, getstate_setstate=False)",
            "@attrs.frozen(init=False, eq=False, repr=False)",
        ),
        "attrs sees for itself that the class has its own; mypy has to be told",
    ),
    Accepted(
        "server",
        "_check_work",
        "if not isinstance(args, (tuple, list, Iterable)):",
        (
            "if not isinstance(args, (list, Iterable, )):",
            "if not isinstance(args, (tuple, Iterable, )):",
        ),
        "the abstract class knows it too; it only takes longer",
    ),
    Accepted(
        "server",
        "_check_work",
        "if not isinstance(kwargs, (dict, MappingProxyType, Mapping)):",
        (
            "if not isinstance(kwargs, (MappingProxyType, Mapping, )):",
            "if not isinstance(kwargs, (dict, Mapping, )):",
        ),
        "the abstract class knows it too; it only takes longer",
    ),
    Accepted(
        "slots",
        "<module>",
        'LIMIT: Final[int] = getattr(select, "PIPE_BUF", 512)',
        (
            'LIMIT: Final[int] = getattr(select, "PIPE_BUF", 511)',
            'LIMIT: Final[int] = getattr(select, "PIPE_BUF", 513)',
        ),
        "where the tests run, select has PIPE_BUF",
    ),
    Accepted(
        "slots",
        "<module>",
        "DEPTHS: Final = 1 << 16",
        ("DEPTHS: Final = 1 << 15",),
        A_SIZE,
    ),
    Accepted(
        "slots",
        "<module>",
        "PRESENCE: Final = 3 << 61",
        ("PRESENCE: Final = 2 << 61",),
        "it is still beyond the places of all slots",
    ),
    Accepted(
        "slots",
        "<module>",
        "_TRIES: Final = 20",
        (
            "_TRIES: Final = 19",
            "_TRIES: Final = 21",
        ),
        A_SIZE,
    ),
    Accepted(
        "slots",
        "__init__",
        "self._kept = -1",
        ("self._kept = - 2",),
        ANY_NEGATIVE,
    ),
    Accepted(
        "slots",
        "__init__",
        "self._recovered = 0",
        ("pass", "self._recovered = -1", "self._recovered = 1"),
        "it is read only once closed, and close has set it by then; here it has its type",
    ),
    Accepted(
        "slots",
        "create",
        "return cls(os.urandom(16).hex(), count, kernel)",
        (
            "return cls(os.urandom( 15).hex(), count, kernel)",
            "return cls(os.urandom( 17).hex(), count, kernel)",
        ),
        A_SIZE,
    ),
    Accepted(
        "slots",
        "lend",
        "if relief is not None and kernel.find(relief, relief + 1) is not None:",
        ("if relief is not None and kernel.find(relief, relief + 2) is not None:",),
        "whoever is a step deeper was lent the slot by this process, which then has the place",
    ),
    Accepted(
        "slots",
        "grant",
        "presence, entered = -1, False",
        ("presence, entered = - 2, False",),
        ANY_NEGATIVE,
    ),
    Accepted(
        "slots",
        "grant",
        "if presence >= 0:",
        ("if presence > 0:", "if presence >= 1:"),
        "two descriptors are opened before it, and take the number 0 if it is free",
    ),
    Accepted(
        "slots",
        "give_back",
        "def give_back(self, slot: Slot, *, ended: bool = True) -> bool:",
        ("def give_back(self, slot: Slot, /, ended: bool = True) -> bool:",),
        MORE,
    ),
    Accepted(
        "slots",
        "give_back",
        "if entered and (not slot.told or slot.kept or self._is_free(slot.place + 1)):",
        ("if entered and (not slot.told and slot.kept or self._is_free(slot.place + 1)):",),
        "it looks where a look can be spared, and finds nobody",
    ),
    Accepted(
        "slots",
        "audit",
        "if missing > 0:",
        ("if missing > -1:", "if missing >= 0:"),
        "no bytes are written then, and none are added to the count",
    ),
    Accepted(
        "slots",
        "close",
        "self._kept_is_free = False",
        ("pass", "self._kept_is_free = True"),
        "nothing is taken from a pool that is closed; who did would not meet a stale descriptor",
    ),
    Accepted(
        "slots",
        "after_fork",
        "self._kept = -1",
        ("self._kept = - 2",),
        ANY_NEGATIVE,
    ),
    Accepted(
        "slots",
        "_enter",
        "return False",
        ("pass",),
        NONE_IS_FALSE,
    ),
    Accepted(
        "slots",
        "_release",
        "self._kept = -1",
        ("self._kept = - 2",),
        ANY_NEGATIVE,
    ),
    Accepted(
        "slots",
        "_release",
        "receipt, slot.receipt = slot.receipt, -1",
        ("receipt, slot.receipt = slot.receipt, - 2",),
        ANY_NEGATIVE,
    ),
    Accepted(
        "slots",
        "_missing",
        'assert self.count is not None, "whose pool it is knows how many slots it has"',
        ("pass",),
        "a pool that was created here or arrived knows it; it is for type checkers",
    ),
    Accepted(
        "slots",
        "_missing",
        "present = self.kernel.find(PRESENCE, PRESENCE + 1) is not None",
        ("present = self.kernel.find(PRESENCE, PRESENCE + 2) is not None",),
        "there is nobody beyond",
    ),
    Accepted(
        "slots",
        "_log",
        'logging.getLogger("jobserver").debug("slots %s: " + text, self.identity[:8], number)',
        (
            'logging.getLogger("jobserver").debug("slots %s: " + text, self.identity[: 7], number)',
            'logging.getLogger("jobserver").debug("slots %s: " + text, self.identity[: 9], number)',
        ),
        A_SIZE,
    ),
    Accepted(
        "wire",
        "<module>",
        "EXIT = 2",
        ("EXIT = 3",),
        "it must differ from the others, and both sides have it from here",
    ),
    Accepted(
        "pickles",
        "<module>",
        "LARGE = 1 << 18 if HAS_MEMFD else sys.maxsize",
        (
            "LARGE = 1 << 17 if HAS_MEMFD else sys.maxsize",
            "LARGE = 1 << 19 if HAS_MEMFD else sys.maxsize",
            "LARGE = 2 << 18 if HAS_MEMFD else sys.maxsize",
        ),
        A_SIZE,
    ),
    Accepted(
        "wire",
        "<module>",
        "_ONE_WRITE = 1 << 16",
        (
            "_ONE_WRITE = 1 << 17",
            "_ONE_WRITE = 2 << 16",
        ),
        A_SIZE,
    ),
    Accepted(
        "tracebacks",
        "__init__",
        "super().__init__(text)",
        ("pass",),
        "BaseException.__new__ has kept the arguments",
    ),
    Accepted(
        "wire",
        "__init__",
        "*,",
        ("/,",),
        MORE,
    ),
    Accepted(
        "pickles",
        "dump",
        "self.pickler(self, pickle.HIGHEST_PROTOCOL, True, self.keep_out).dump(value)",
        ("self.pickler(self, pickle.HIGHEST_PROTOCOL, False, self.keep_out).dump(value)",),
        "only the protocols below 3 look at it: it is for Python 2",
    ),
    Accepted(
        "pickles",
        "keep_out",
        "return False",
        ("pass",),
        NONE_IS_FALSE,
    ),
    Accepted(
        "wire",
        "send",
        "def send(self, fd: int, files: int = -1, *, last: bool = True) -> None:",
        ("def send(self, fd: int, files: int = - 2, *, last: bool = True) -> None:",),
        ANY_NEGATIVE,
    ),
    Accepted(
        "wire",
        "send",
        "def send(self, fd: int, files: int = -1, *, last: bool = True) -> None:",
        ("def send(self, fd: int, files: int = -1, /, last: bool = True) -> None:",),
        MORE,
    ),
    Accepted(
        "wire",
        "send",
        "if whole.size < _ONE_WRITE:",
        ("if whole.size <= _ONE_WRITE:",),
        A_SIZE,
    ),
    Accepted(
        "wire",
        "load_ending",
        'assert isinstance(content, BaseException), "load has checked it"',
        ("pass",),
        "load has checked it; it is for type checkers",
    ),
    Accepted(
        "wire",
        "reducer_override",
        'raise TypeError(f"of another type: {type(value)}")',
        ("pass",),
        "the pickler refuses None as well",
    ),
    Accepted(
        "pickles",
        "pickled",
        "if type(value) in _ATOMS and sys.getsizeof(value) < LARGE:",
        ("if type(value) in _ATOMS and sys.getsizeof(value) <= LARGE:",),
        A_SIZE,
    ),
)
