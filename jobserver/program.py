"""What a fresh process has to know of the program: its main module, paths and arguments.

multiprocessing reads that at each start of a process. An executor's thread starts workers later
than the program asked for them, perhaps after the main script has ended: by then Python has
deleted `__main__.__file__`, and the program may have changed the rest. So it is noted early, and a
worker that is started late is told what multiprocessing no longer tells it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from multiprocessing import process as mp_process
from multiprocessing import spawn
from typing import Any, Final, Optional

# What `multiprocessing.spawn.prepare` sets in the new process, by the keys that it knows.
Facts = Mapping[str, object]

_MAIN_NAME: Final = "init_main_from_name"
_MAIN_PATH: Final = "init_main_from_path"
_MAIN: Final = (_MAIN_NAME, _MAIN_PATH)
_REST: Final = ("sys_path", "sys_argv", "dir", "orig_dir")

# The module itself is hidden behind a function of its name from checkers.
_context: Final[Any] = sys.modules["multiprocessing.context"]
_TOLD: Final[tuple[type, ...]] = tuple(
    getattr(_context, name)
    for name in ("SpawnProcess", "ForkServerProcess")
    if hasattr(_context, name)
)


def current() -> Facts:
    """All the facts, as they are now.

    Raises RuntimeError, as multiprocessing does, while a worker still imports the main module.
    """
    found: dict[str, Any] = spawn.get_preparation_data("")
    facts = {key: found[key] for key in (*_REST, *_MAIN) if key in found}
    # multiprocessing gives `sys.argv` itself, which the program can change later.
    facts["sys_argv"] = list(facts["sys_argv"])
    return facts


class Missing:
    """What a new process has to be told beside what multiprocessing tells it.

    Of `noted`, or of the main script alone, which is then noted now. It is found out when this is
    pickled, just after multiprocessing has looked: so no change comes in between unseen.
    """

    def __init__(self, noted: Optional[Facts]) -> None:
        self._noted = noted
        self._main = _main_path()

    def __reduce__(self) -> tuple[object, ...]:
        return dict, (self._facts(),)

    def _facts(self) -> Facts:
        if self._noted is None:
            # Nothing if the program has another main module by now.
            is_same = self._main is not None and _main_path() in (self._main, None)
            return {_MAIN_PATH: self._main} if is_same else {}
        now = current()
        facts = {key: self._noted[key] for key in _REST if self._noted[key] != now[key]}
        # Always, as it does no harm: a main module that is there already is not imported again.
        facts.update((key, self._noted[key]) for key in _MAIN if key in self._noted)
        return facts


def is_told(kind: object) -> bool:
    """Whether multiprocessing itself prepares processes of this kind.

    Other contexts, such as loky's, have preparations of their own.
    """
    return isinstance(kind, type) and issubclass(kind, _TOLD)


def _main_path() -> Optional[str]:
    """The path of the main script, as multiprocessing tells it; None if there is none."""
    main = sys.modules["__main__"]
    path: Optional[str] = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None:
        return None
    process: Any = mp_process  # `ORIGINAL_DIR` is not in typeshed
    origin: Optional[str] = process.ORIGINAL_DIR
    if not os.path.isabs(path) and origin is not None:
        path = os.path.join(origin, path)
    return os.path.normpath(path)
