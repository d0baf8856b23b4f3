"""Which jobserver the environment names: make's in MAKEFLAGS, cargo's, or one of ours.

A variable of ours says how many slots a pool has, which MAKEFLAGS does not, and which fifo opens
it. So a program finds it that make has not shared its pipe with, or that has lost the pipe:

    JOBSERVER_POOL=8,fifo:/tmp/jobserver-1000/3f9c...
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final, Optional

import attrs

from .make import FIFO, Auth, Fifo, NoJobserver, Reason, find_auth, find_jobs

OURS: Final = "JOBSERVER_POOL"

_OURS: Final = re.compile(rf"(\d{{1,9}}),{FIFO}(/.+)", re.ASCII)
# Of what MAKEFLAGS names: it was there, but has not come down to this process.
_LOST: Final[tuple[Reason, ...]] = ("disabled", "bad descriptor", "not a pipe", "cannot open")
_UNNAMED: Final[tuple[Reason, ...]] = ("absent", "not a jobserver")


@attrs.frozen
class Named:
    """A jobserver, and how many slots it has if that is known."""

    auth: Auth
    slots: Optional[int]


def find(environ: Mapping[str, str]) -> Named:
    """The jobserver that MAKEFLAGS names, or else CARGO_MAKEFLAGS. NoJobserver if there is none."""
    makeflags = environ.get("MAKEFLAGS")
    try:
        auth = find_auth(makeflags)
    except NoJobserver as error:
        # A make with -j1 has no jobserver because it is not to have one.
        cargo = None if find_jobs(makeflags) == 1 else environ.get("CARGO_MAKEFLAGS")
        if error.reason not in _UNNAMED or cargo is None:
            raise
        try:
            auth, makeflags = find_auth(cargo), cargo
        except NoJobserver:
            raise error from None
    slots = find_jobs(makeflags)
    ours = _ours(environ)
    if slots is None and ours is not None and _is_same(auth, ours):
        slots = ours.slots
    return Named(auth, slots)


def find_instead(environ: Mapping[str, str], error: NoJobserver) -> Optional[Named]:
    """Ours, if what MAKEFLAGS names has been lost on the way to this process."""
    return _ours(environ) if error.reason in _LOST else None


def describe(slots: Optional[int], path: str) -> dict[str, str]:
    """The variable of ours for a command; nothing if there is nothing that it could say."""
    return {OURS: f"{slots},{FIFO}{path}"} if slots is not None and path else {}


def _ours(environ: Mapping[str, str]) -> Optional[Named]:
    found = _OURS.fullmatch(environ.get(OURS, ""))
    return None if found is None else Named(Fifo(found[2]), int(found[1]))


def _is_same(auth: Auth, ours: Named) -> bool:
    if isinstance(auth, Fifo):
        return auth == ours.auth
    assert isinstance(ours.auth, Fifo), "there is no other kind of ours"
    try:
        return os.path.samestat(os.fstat(auth.read), os.stat(ours.auth.path))
    except OSError:
        return False
