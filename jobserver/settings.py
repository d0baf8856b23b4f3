"""The immutable controls of a submission: environment, preexec, admission gate."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Callable, Optional, SupportsFloat, SupportsIndex, Union, cast

import attrs

EnvPairs = Union[Mapping[str, Optional[str]], Iterable[tuple[str, Optional[str]]]]
Gate = Callable[[], Optional[float]]


@attrs.frozen
class Reuse:
    """Workers that serve many submissions."""

    max_tasks: Optional[int]  # None: any number
    idle: float  # seconds without work after which one leaves


@attrs.frozen
class Settings:
    """What a handle adds to the work submitted through it. Each change is a new object."""

    env: tuple[tuple[str, Optional[str]], ...] = ()
    preexec: Optional[Callable[[], object]] = None
    sleep: Optional[Gate] = None
    reuse: Optional[Reuse] = None  # None: a fresh worker for each submission

    def revise_env(self, revision: EnvPairs) -> Settings:
        """Merge a revision onto the earlier ones, checked as `os.environ` would check it."""
        merged = dict(self.env)
        for name, value in _pairs(revision):
            _check_env(name, value)
            merged[name] = value
        return attrs.evolve(self, env=tuple(merged.items()))

    def replace_preexec(
        self, fn: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Settings:
        if not callable(fn):
            raise TypeError(f"preexec must be callable, not {fn!r}")
        return attrs.evolve(self, preexec=functools.partial(fn, *args, **kwargs))

    def replace_sleep(self, fn: Gate) -> Settings:
        if not callable(fn):
            raise TypeError(f"sleep must be callable, not {fn!r}")
        return attrs.evolve(self, sleep=fn)

    def replace_workers(self, max_tasks: Optional[int], idle: float) -> Settings:
        reuse = None if max_tasks == 1 else Reuse(max_tasks, idle)
        return attrs.evolve(self, reuse=reuse)

    def limit_tasks(self, most: int) -> Settings:
        """No more tasks a worker than this."""
        if self.reuse is None:
            return self
        tasks = self.reuse.max_tasks
        return self.replace_workers(most if tasks is None else min(tasks, most), self.reuse.idle)

    def delay(self) -> Optional[float]:
        """Ask the gate: None admits, a number is the seconds to sleep before asking again."""
        if self.sleep is None:
            return None
        return _check_delay(self.sleep())


def _check_delay(answer: object) -> Optional[float]:
    if answer is None:
        return None
    seconds = _seconds(answer)
    if seconds is None or not (0 <= seconds < math.inf):
        raise ValueError(
            "the function given to replace_sleep must return None or a finite number of seconds "
            f">= 0, not {answer!r}"
        )
    return seconds


def check_timeout(timeout: object) -> Optional[float]:
    """The timeout in seconds as a float, or None for no end; anything unfit raises."""
    if timeout is None:
        return None
    return check_seconds("timeout", timeout, "None or ", " (None waits for ever)")


def check_seconds(name: str, value: object, others: str = "", hint: str = "") -> float:
    """A number of seconds as a float; anything unfit raises and names the argument."""
    seconds = _seconds(value)
    if seconds is None:
        raise TypeError(
            f"{name} must be {others}a number of seconds, not {value!r} "
            f"of type {type(value).__qualname__}"
        )
    if not (0 <= seconds < math.inf):
        raise ValueError(f"{name} must be finite and >= 0 seconds{hint}, not {value!r}")
    return seconds


def check_positive(name: str, value: object, others: str = "") -> int:
    """A count of at least 1 as an int; anything unfit raises and names the argument."""
    count = as_int(value)
    if count is None:
        raise TypeError(
            f"{name} must be an int{others}, not {value!r} of type {type(value).__qualname__}"
        )
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return count


def as_int(value: object) -> Optional[int]:
    """What counts, such as an int of NumPy's, as an int; None for anything else, bool included."""
    if _is_bool(value):
        return None
    try:
        return operator.index(cast("SupportsIndex", value))
    except TypeError:
        return None


def _seconds(value: object) -> Optional[float]:
    """What measures, such as a Decimal, as a float; None for anything else, bool included."""
    if _is_bool(value) or isinstance(value, (str, bytes, bytearray)):
        return None  # texts of numbers, of which `float` makes numbers
    try:
        return float(cast("SupportsFloat", value))
    except TypeError:
        return None
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN
        return math.nan


def _is_bool(value: object) -> bool:
    # NumPy's is no subclass, and is not to be imported to find out.
    return isinstance(value, bool) or type(value).__name__ == "bool_"


def _pairs(revision: object) -> Iterable[tuple[str, Optional[str]]]:
    if isinstance(revision, Mapping):
        revision = cast("Mapping[str, Optional[str]]", revision).items()
    if isinstance(revision, (str, bytes)) or not isinstance(revision, Iterable):
        raise TypeError(
            f"env must be a mapping or pairs of names and values, not {revision!r} "
            f"of type {type(revision).__qualname__}"
        )
    # The types within are checked one by one.
    return cast("Iterable[tuple[str, Optional[str]]]", revision)


def _check_env(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"env names must be str, not {name!r} of type {type(name).__qualname__}")
    if not name or "=" in name or "\0" in name:
        raise ValueError(f"env names must be non-empty, without '=' and NUL, not {name!r}")
    os.fsencode(name)
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(
            f"the value of env {name!r} must be str, or None to unset it, not {value!r} "
            f"of type {type(value).__qualname__}"
        )
    if "\0" in value:
        raise ValueError(f"the value of env {name!r} must be without NUL, not {value!r}")
    os.fsencode(value)
