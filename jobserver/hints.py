"""Words for what users of concurrent.futures and multiprocessing try first, and what to write."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Callable, Final, TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])

PASS_THE_JOBSERVER: Final = (
    "pass the Jobserver instead, as in `js = Jobserver(); ex = JobserverExecutor(js); "
    "ex.submit(fn, js)`, and submit to that"
)

OF_A_FUTURE: Final[Mapping[str, str]] = {
    "add_done_callback": "use when_done(fn, *args, **kwargs), where fn gets just these arguments",
    "cancel": "use wait(signal=signal.SIGTERM), which ends the work and waits for its end",
    "cancelled": "result() raises LostResult for work that a signal has ended",
    "exception": "use result(), which raises what the work raised",
    "get": "use result(timeout)",
    "ready": "use done()",
    "running": "use `not done()`",
    "successful": "use result(), which raises what the work raised",
}

_POOL_MAP: Final = "use map(fn, argses), where each of argses has the arguments of one call"
_END: Final = "drain() waits for all that runs, and the end of a `with` block closes the Jobserver"

OF_A_JOBSERVER: Final[Mapping[str, str]] = {
    "apply": "use submit(fn, args=..., kwargs=...).result()",
    "apply_async": "use submit(fn, args=..., kwargs=...)",
    "as_completed": "use when_done of each Future, or a JobserverExecutor",
    "cancel": "use wait(signal=signal.SIGTERM) of a Future",
    "close": _END,
    "imap": _POOL_MAP,
    "imap_unordered": _POOL_MAP,
    "join": _END,
    "kill": "use wait(signal=signal.SIGKILL) of each Future",
    "map_async": _POOL_MAP,
    "shutdown": _END,
    "starmap": _POOL_MAP,
    "starmap_async": _POOL_MAP,
    "terminate": "use wait(signal=signal.SIGTERM) of each Future",
    "wait": "use drain(), or wait of each Future",
}

_OF_SUBMIT: Final = frozenset(("fn", "args", "kwargs", "consume", "timeout"))


def no_attribute(owner: object, name: str, hints: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that is not there; some that are elsewhere get a hint."""
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    return AttributeError(f"{text}: {hints[name]}" if name in hints else text)


def arguments_by_name(submit: F) -> F:
    """Have `js.submit(pow, 2, 3)` raise a TypeError that shows the right call.

    The signature stays as it is, for readers, for `inspect` and for type checkers.
    """

    @functools.wraps(submit)
    def checked(*positional: object, **named: object) -> object:
        if len(positional) > 2 or not named.keys() <= _OF_SUBMIT:
            raise _misplaced(positional, named)
        return submit(*positional, **named)

    return cast("F", checked)  # as `wraps` says


def _misplaced(positional: tuple[object, ...], named: Mapping[str, object]) -> TypeError:
    from reprlib import repr as short

    fn = positional[1] if len(positional) > 1 else named.get("fn")
    called = getattr(fn, "__name__", "fn")
    args = positional[2:]
    kwargs = {name: value for name, value in named.items() if name not in _OF_SUBMIT}
    shown = ", ".join(map(short, args))
    parts = [f"args=({shown}{',' * (len(args) == 1)})"] if args else []
    if kwargs:
        parts.append("kwargs={" + ", ".join(f"{k!r}: {short(v)}" for k, v in kwargs.items()) + "}")
    short_way = [*map(short, args), *(f"{name}={short(value)}" for name, value in kwargs.items())]
    return TypeError(
        "submit takes the arguments of the work as args and kwargs: write "
        f"js.submit({called}, {', '.join(parts)}), or js({called}, {', '.join(short_way)})"
    )


def for_one_argument(value: object) -> str:
    """What follows an error about a value in the place of a call's arguments."""
    return (
        "" if isinstance(value, Mapping) else f": for a call with one argument write ({value!r},)"
    )


def seconds(count: float) -> str:
    """A time, to the millisecond."""
    return f"{round(float(count), 3):g} s"


def number(count: int, noun: str) -> str:
    """A number of things: "1 Future", "2 Futures"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
