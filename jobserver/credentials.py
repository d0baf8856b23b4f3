"""What the kernel lets a process do, as a value: no process is reused when that has changed."""

from __future__ import annotations

import functools
import os
import sys
from typing import Callable, Final, Optional

# From linux/capability.h.
_VERSION_3: Final = 0x20080522
_SYS_ADMIN: Final = 1 << 21

_NAMESPACES: Final = "/proc/thread-self/ns"
_STATUS: Final = (b"Uid:", b"Gid:", b"Groups:", b"Cap")


def current() -> tuple[object, ...]:
    """Users, groups, capabilities and namespaces of this thread. Equal when nothing has changed.

    Called at each submission, so it takes 2.5 µs. The namespaces take 30 µs, so they are read only
    where they can change: with CAP_SYS_ADMIN. Who makes a user namespace without it gets it there.
    """
    if sys.platform == "win32":
        return ()
    if not hasattr(os, "getresuid"):
        return os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups()
    capabilities = _read_capabilities()
    is_admin = bool(capabilities and capabilities[0] & _SYS_ADMIN)
    namespaces = _read_namespaces() if is_admin else None
    return os.getresuid(), os.getresgid(), os.getgroups(), capabilities, namespaces


def are_those_of(pid: int) -> bool:
    """Whether another process has those of this thread, as far as /proc tells."""
    try:
        theirs = _read_status(f"/proc/{pid}/status")
    except OSError:
        return not os.path.exists("/proc/thread-self/status")
    return theirs == _read_status("/proc/thread-self/status")


def _read_status(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return [line for line in file if line.startswith(_STATUS)]


def _read_namespaces() -> Optional[list[str]]:
    try:
        return [os.readlink(f"{_NAMESPACES}/{name}") for name in _namespace_names()]
    except OSError:
        return None


@functools.cache
def _namespace_names() -> list[str]:
    return sorted(os.listdir(_NAMESPACES))


def _read_capabilities() -> Optional[tuple[int, ...]]:
    read = _reader()
    return None if read is None else read()


@functools.cache
def _reader() -> Optional[Callable[[], tuple[int, ...]]]:
    """capget(2), where there is one: /proc says the same and takes five times as long."""
    try:
        import ctypes

        capget = ctypes.CDLL(None).capget
    except (ImportError, OSError, AttributeError):
        return None
    header_type, sets_type = ctypes.c_uint32 * 2, ctypes.c_uint32 * 6

    def read() -> tuple[int, ...]:
        sets = sets_type()
        capget(header_type(_VERSION_3, 0), sets)
        return tuple(sets)

    return read
