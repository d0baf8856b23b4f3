"""Modules that gevent has patched: a worker waits for real, and not for other greenlets."""

from __future__ import annotations

import os
import select
import socket
from typing import Any, NoReturn

import pytest

from jobserver import Jobserver
from tests.work import PATIENCE, getpid


def test_a_worker_that_serves_waits_with_nothing_that_is_patched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a forked worker, a wait of gevent's would go on with copies of the parent's greenlets."""
    parent = os.getpid()
    poll = select.poll

    def refuse() -> NoReturn:
        os.write(2, b"a wait that is patched\n")
        os._exit(1)

    def cooperative_poll() -> Any:
        return poll() if os.getpid() == parent else refuse()

    class CooperativeSocket(socket.socket):
        def recv(self, *args: Any) -> bytes:
            return super().recv(*args) if os.getpid() == parent else refuse()

        def recvmsg(self, *args: Any) -> Any:
            return super().recvmsg(*args) if os.getpid() == parent else refuse()

    monkeypatch.setattr(select, "poll", cooperative_poll)
    monkeypatch.setattr(socket, "socket", CooperativeSocket)
    with Jobserver("fork", 1) as made:
        js = made.replace_workers()
        first = js(getpid).result(PATIENCE)
        assert js(getpid).result(PATIENCE) == first != parent
