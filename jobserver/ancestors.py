"""Whether a descriptor that make has shared was lost between make and this process."""

from __future__ import annotations

import os
import re
import stat
from typing import Final, Optional

_IS_MAKE: Final = re.compile(r"(g|gnu)?make(-\d.*)?")
_GENERATIONS: Final = 50  # that are looked at


def find_holder(read: int, write: int) -> Optional[str]:
    """The nearest ancestor below make that has both ends of a pipe there: name and process id.

    If there is one, make has shared the pipe, and somebody below has closed it.
    """
    pid = os.getppid()
    for _ in range(_GENERATIONS):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                head, _, tail = file.read().rpartition(")")
            name = head.partition("(")[2]
            if _IS_MAKE.fullmatch(name):
                return None
            if _has_both(pid, read, write):
                return f"{name} (process {pid})"
        except OSError:  # another user's, the end of the line, or no /proc
            return None
        pid = int(tail.split()[1])
    return None


def _has_both(pid: int, read: int, write: int) -> bool:
    try:
        ends = [os.stat(f"/proc/{pid}/fd/{fd}") for fd in (read, write)]
    except FileNotFoundError:
        return False
    return os.path.samestat(*ends) and all(stat.S_ISFIFO(end.st_mode) for end in ends)
