"""multiprocessing's forkserver: started so that it works, and forgotten in a forked child."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import util
from typing import Any, Final

from . import signals

_MODULE: Final = "multiprocessing.forkserver"
_UNBLOCK: Final = "import signal; signal.pthread_sigmask(signal.SIG_SETMASK, ()); "

_lock = threading.RLock()


def start_unblocked() -> None:
    """Start the forkserver, where it would inherit that SIGCHLD is blocked.

    It learns by SIGCHLD that a worker has ended, and does not unblock it: nobody would be told of
    any end. To unblock it here, for a moment, could cost the program a signal that it waits for.
    So the server's own program, which multiprocessing writes, is made to begin with that.
    """
    if signal.SIGCHLD not in signals.current_mask():
        return
    from multiprocessing import forkserver

    private: Any = util  # what the standard library keeps for itself is not in typeshed
    with _lock:
        spawn = private.spawnv_passfds

        def spawn_unblocked(path: bytes, args: Sequence[Any], fds: Sequence[int]) -> Any:
            # What other threads start meanwhile is left as it is.
            args = [
                f"{_UNBLOCK}{each}" if isinstance(each, str) and _MODULE in each else each
                for each in args
            ]
            return spawn(path, args, fds)

        private.spawnv_passfds = spawn_unblocked
        try:
            forkserver.ensure_running()
        finally:
            private.spawnv_passfds = spawn


def forget() -> None:
    """In a fork of a process with a forkserver: have multiprocessing start another one.

    It does not reset this state in forked children, and then waits for a child that it has not.
    """
    from multiprocessing import forkserver

    # typeshed has the class, without the attributes; what is not public is read as it is.
    server: Any = vars(forkserver)["_forkserver"]
    with server._lock:
        if server._forkserver_alive_fd is not None:
            os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = server._forkserver_pid = server._forkserver_address = None
