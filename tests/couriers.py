"""Work whose result has descriptors; without pytest, so that a spawned worker starts quickly."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import threading
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from jobserver import Jobserver, JobserverExecutor
from tests.work import PATIENCE


def greeted(text: str = "hello") -> Connection:
    """A connection from which the text can be received."""
    theirs, ours = multiprocessing.Pipe()
    ours.send(text)
    ours.close()
    return theirs


def greeted_socket(text: str = "hello") -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(text.encode())
    return theirs


def bundle(count: int, size: int) -> dict[str, Any]:
    """Several of both kinds, in containers, beside so many bytes; one of them twice."""
    connections = [greeted(str(number)) for number in range(count)]
    sockets = tuple(greeted_socket(str(number)) for number in range(count))
    return {
        "connections": connections,
        "nested": {"sockets": [sockets], "again": connections[0]},
        "beside": b"x" * size,
    }


class Keeper:
    """Has a descriptor, which it fetches when it is asked to."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __reduce__(self) -> tuple[object, ...]:
        if isinstance(self.source, int):
            return Keeper, (reduction.DupFd(self.source),)
        return Keeper, (self.source,)

    def __del__(self) -> None:
        if isinstance(self.source, int):
            os.close(self.source)


def keeper(text: str = "pipe") -> Keeper:
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    return Keeper(read)


class CourierError(Exception):
    pass


def fail_with_connection() -> NoReturn:
    raise CourierError(greeted("from the error"))


def greeted_or_fail(number: int) -> Connection:
    if number == 1:
        fail_with_connection()
    return greeted(str(number))


def scarce(count: int) -> object:
    """More of them than this worker may have open."""
    value = [greeted() for _ in range(count)]
    have = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (have + 3, have + 3))
    return value


def a_lock() -> object:
    return multiprocessing.get_context("spawn").Lock()


def a_queue() -> object:
    return multiprocessing.get_context("spawn").SimpleQueue()


def a_key() -> object:
    return multiprocessing.current_process().authkey


def give_below(js: Jobserver) -> tuple[str, Connection]:
    """From a worker's own workers."""
    mine = js(greeted, "below").result(PATIENCE)
    with JobserverExecutor(js) as executor:
        other: Connection = executor.submit(greeted, "on").result(PATIENCE)
    return mine.recv(), other


def pickle_meanwhile() -> list[Any]:
    """Another thread of the worker sends a connection while the result is pickled."""
    return [Slow(), greeted()]


class Slow:
    """Has another thread pickle a connection in the middle of this one's pickling."""

    def __reduce__(self) -> tuple[object, ...]:
        found: list[str] = []

        def pickle() -> None:
            found.append(type(reduction.DupFd(0)).__module__)

        thread = threading.Thread(target=pickle)
        thread.start()
        thread.join()
        return str, (found[0],)
