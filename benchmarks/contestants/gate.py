"""Holding many forked workers, and telling when all of them are gone."""

from __future__ import annotations

import os
import resource
import time


class Gate:
    """A gate for workers that run `hold(*gate.key)`, and for nothing but fork.

    It works by the ends of two pipes: the workers read one whose last writer is here, and are
    together the last writers of the other. So a contestant that is killed sets them free.
    """

    def __init__(self) -> None:
        self.key = os.pipe()
        self._gone, self._alive = os.pipe()

    def complete(self) -> None:
        """Say that every worker to be held has been started."""
        os.close(self._alive)

    def open(self) -> None:
        """Let the workers go, and wait until they have ended."""
        entry, lock = self.key
        os.close(lock)
        os.read(self._gone, 1)
        time.sleep(0.05)  # the last of them has closed its files and is a step from its end
        os.close(entry)
        os.close(self._gone)


def allow_descriptors() -> None:
    """Raise the limit on open files as far as it goes: a worker that is held takes a few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
