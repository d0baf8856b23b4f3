"""Run functions in other processes under a fixed number of slots, as GNU Make's jobserver does.

The public names are imported when they are first used (PEP 562): a worker process that is started
afresh imports this package and should pay only for what it needs.
"""

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from .errors import Blocked, CallbackRaised, LostResult
    from .executor import JobserverExecutor
    from .future import Future
    from .make import NoJobserver
    from .server import Jobserver

__version__ = "0.1.0"

__all__ = (
    "Blocked",
    "CallbackRaised",
    "Future",
    "Jobserver",
    "JobserverExecutor",
    "LostResult",
    "NoJobserver",
    "__version__",
)

_ROOMS = {
    "Blocked": "errors",
    "CallbackRaised": "errors",
    "Future": "future",
    "Jobserver": "server",
    "JobserverExecutor": "executor",
    "LostResult": "errors",
    "NoJobserver": "make",
}


if not TYPE_CHECKING:  # or checkers would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module("." + _ROOMS[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> "list[str]":
    return sorted(__all__)
