"""multiprocessing's forkserver: started so that it works, and left where it must not be used."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import process, util
from typing import Any, Final, Optional

from . import credentials, forks, signals

_MODULE: Final = "multiprocessing.forkserver"
_UNBLOCK: Final = "import signal; signal.pthread_sigmask(signal.SIG_SETMASK, ()); "

_lock = threading.RLock()

# The forkserver in use (None before it has started), and the credentials with which it was started.
_server: Optional[tuple[Optional[int], object]] = None


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


def leave_other() -> None:
    """Have multiprocessing start another forkserver if this one has other credentials.

    The old one serves nobody from here on. It ends with this process: its workers, and processes
    that the program started, need it until they end.
    """
    global _server
    from multiprocessing import forkserver

    # As in `forget`.
    server: Any = vars(forkserver)["_forkserver"]
    now = credentials.current()
    with server._lock:
        pid = server._forkserver_pid
        if pid is not None:
            if _server is not None and _server[0] in (None, pid):
                same = _server[1] == now
            else:  # somebody else has started it
                same = credentials.are_those_of(pid)
            if not same:
                forks.private(server._forkserver_alive_fd)
                server._forkserver_alive_fd = None
                server._forkserver_pid = server._forkserver_address = pid = None
                _leave_directory()
        _server = pid, now


def _leave_directory() -> None:
    """Have multiprocessing make another directory for sockets if this user cannot use the old."""
    config: dict[str, Any] = vars(process.current_process())["_config"]
    directory = config.get("tempdir")
    if directory is not None and not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        del config["tempdir"]
