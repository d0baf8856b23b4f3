"""Parent-death signal: on Linux, let workers die with whoever submitted them.

A worker outlives a parent that is killed: it finishes its work for nobody. Where that is too
expensive, ask the kernel for a signal: `prctl(PR_SET_PDEATHSIG, SIGKILL)`, called in the worker by
a preexec, kills it the moment its parent ends, however that ends.

Two things to know. The kernel's parent is who forked the process: the submitter under fork and
spawn, but under forkserver the fork server, which goes on. And it means the parent's *thread*:
submit from one that lives as long as the work shall.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from jobserver import Jobserver

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def die_with(parent: int) -> None:
    """Have this process killed as soon as its parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    # The parent may have ended before the call; then no signal is going to come.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def work_for_ever(started: Connection) -> None:
    started.send(os.getpid())
    while True:
        signal.pause()


def submit_and_wait(js: Jobserver, started: Connection) -> None:
    """A parent that waits for its worker."""
    js.replace_preexec(die_with, os.getpid())(work_for_ever, started).result()


def main() -> None:
    if sys.platform != "linux":
        print("only Linux has a parent-death signal")
        return
    for method in ("fork", "spawn"):
        with Jobserver(method, slots=2) as js:
            receiver, sender = js.context.Pipe(duplex=False)
            with receiver:
                with sender:
                    parent = js(submit_and_wait, js, sender)
                    worker: int = receiver.recv()  # the worker is at work
                assert not parent.done()
                assert parent.wait(signal=signal.SIGKILL)

                # Parent and worker held the pipe's last write ends: it ends when both have died.
                with suppress(EOFError):
                    raise AssertionError(receiver.recv())
                print(f"{method}: worker {worker} died with its parent")


if __name__ == "__main__":
    main()
