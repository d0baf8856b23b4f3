"""Exceptions that come from another process, with the traceback that they had there.

A traceback cannot be pickled, so its text travels. Some exceptions refuse attributes (those of a
frozen dataclass do). What is set here is set past their own `__setattr__`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Optional

    # Descriptors of C, which typeshed shows as plain attributes.
    _cause: Any
    _traceback: Any

_cause = vars(BaseException)["__cause__"]
_traceback = vars(BaseException)["__traceback__"]


class RemoteTraceback(Exception):
    """The worker's traceback as text: the `__cause__` of an exception that crossed a channel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def set_cause(error: BaseException, cause: Optional[BaseException]) -> None:
    """What `raise error from cause` sets, of an error that may refuse attributes."""
    _cause.__set__(error, cause)


def clear_traceback(error: BaseException) -> None:
    """Drop the frames that an error refers to, with all that they refer to."""
    _traceback.__set__(error, None)


def set_state(error: BaseException, state: Mapping[str, Any]) -> None:
    """Rebuild the attributes of an error that may refuse them."""
    for name, value in state.items():
        BaseException.__setattr__(error, name, value)


def shown(value: object) -> str:
    """The repr of a value, or its type if the repr fails."""
    try:
        return repr(value)
    except Exception as broken:
        return f"<{qualified_name(value)}, whose repr raises {type(broken).__name__}>"


def add_note(error: BaseException, note: str) -> None:
    """Have Python print a note below an error. It does so from 3.11 on."""
    notes: object = getattr(error, "__notes__", None)
    set_state(error, {"__notes__": [*notes, note] if isinstance(notes, list) else [note]})


def explain(error: BaseException, text: str, hint: str) -> str:
    """Add a hint to an error from another process: the text of its traceback there.

    Where Python prints no notes, the hint is in the text.
    """
    if sys.version_info >= (3, 11):
        add_note(error, hint)
        return text
    return f"{text}{hint}\n"


def qualified_name(value: object) -> str:
    """The name of a value's type, as messages show it."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return repr(kind.__qualname__)
    return repr(f"{kind.__module__}.{kind.__qualname__}")


def traceback_text(error: BaseException) -> str:
    """The traceback, causes and all, without the frames of this package above the work."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except Exception as broken:  # an exception whose own __str__ or __repr__ raises
        return f"{qualified_name(error)} (its traceback cannot be formatted: {shown(broken)})\n"


def _is_ours(trace: TracebackType) -> bool:
    name: object = trace.tb_frame.f_globals.get("__package__")
    return name == __package__
