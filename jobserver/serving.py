"""The loop of a worker that is used again: one piece of work after another, until it leaves.

It leaves when it has been idle for as long as its last work allowed, when its parent has gone or
wants it to, and after work that has ended the process or left a copy of the result channel
somewhere. Whatever it is about, what it has not *begun* has not happened: it counts what it begins
where its parent sees that, before it looks at the work.
"""

from __future__ import annotations

import _socket
import os
import pickle
import socket
import struct
import sys
from io import BytesIO

from . import wire, worker

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO, Optional

# How long what follows is, in bytes; how long to wait for work after this, in milliseconds; and
# whether what follows is in a file, the first of the descriptors that come with this.
HEADER = struct.Struct("!QQ?")
BEGUN = struct.Struct("q")

MOST_DESCRIPTORS = 253  # in one message: SCM_MAX_FD of Linux
_AT_ONCE = 1 << 16  # bytes that are received at once
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

# Waits for what the work itself has submitted, before the work is answered; see `resources`.
drain: Optional[Callable[[], None]] = None

# What this process has of its parent, if it runs such a loop: not for the children of its work.
_requests: Optional[socket.socket] = None
_begun = -1

# Whether the work has forked: then a copy of the result channel may outlive this process.
_copied = False


class Request:
    """Work as it arrived."""

    __slots__ = ("fds", "idle", "stream")

    def __init__(self, idle: int, stream: BinaryIO, fds: list[int]) -> None:
        self.idle: int = idle
        self.stream: BinaryIO = stream
        self.fds: list[int] = fds


def serve_inherited(reply: int, requests: int, begun: int, receipt: int = -1) -> None:
    """In a forked worker, with the descriptors of a `Post`."""
    global _requests, _begun, _copied
    _copied = False
    # Not the class of `socket`, which gevent replaces: under it, a wait here would go on with the
    # greenlets of which this process has copies. For type checkers it is that class.
    received: socket.socket = _socket.socket(fileno=requests)  # type: ignore[assignment]
    _requests = received
    _begun = begun
    worker.answering = reply
    worker.receipt = receipt if receipt >= 0 else None
    try:
        _serve(reply, received)
    finally:
        _close()


def is_serving() -> bool:
    """Whether this process runs work after work."""
    return _requests is not None


def serve_received(*descriptors: worker.Detachable) -> None:
    """In a worker that was started afresh: the same, as descriptors to be detached."""
    fds = [descriptor.detach() for descriptor in descriptors]
    for fd in fds:
        # They arrive inheritable. A program that the work starts must not have them.
        os.set_inheritable(fd, False)
    serve_inherited(*fds)


def _serve(reply: int, requests: socket.socket) -> None:
    idle: Optional[int] = None  # the first work is on its way
    number = 0
    while True:
        try:
            if not _is_readable(requests, idle):
                return
            request = receive(requests)
        except KeyboardInterrupt:
            return  # nothing was begun
        if request is None:
            return
        idle = request.idle
        number += 1
        if _run(request, reply, number):
            return


def _is_readable(requests: socket.socket, timeout: Optional[int]) -> bool:
    """Wait for at most that many milliseconds (None: without end)."""
    if timeout is None:
        return True  # to receive waits as well
    requests.settimeout(timeout / 1000)
    try:
        requests.recv(1, socket.MSG_PEEK)
    except (socket.timeout, BlockingIOError):
        return False
    finally:
        requests.settimeout(None)
    return True


def receive(requests: socket.socket) -> Optional[Request]:
    """The next work; None when nobody will send any."""
    part, fds, _, _ = socket.recv_fds(requests, _AT_ONCE, MOST_DESCRIPTORS, _CLOSE_ON_EXEC)
    data = bytearray(part)
    while data:
        if len(data) >= HEADER.size:
            size, idle, in_file = HEADER.unpack_from(data)
            if in_file:
                return Request(idle, open(fds[0], "rb"), fds[1:])
            if len(data) == HEADER.size + size:
                return Request(idle, BytesIO(memoryview(data)[HEADER.size :]), fds)
        part = requests.recv(_AT_ONCE)
        if not part:
            break
        data += part
    return None


def _run(request: Request, reply: int, number: int) -> bool:
    """Run one piece of work and answer: whether the worker is to leave."""
    changed: dict[str, Optional[str]] = {}
    for_executor = False
    try:
        try:
            os.pwrite(_begun, BEGUN.pack(number), 0)
            with request.stream as stream:
                env, worker.held, _, beside, for_executor = pickle.load(stream)
                changed = {name: os.environ.get(name) for name, _ in env}
                worker.revise_environ(env)
                worker.received = request.fds
                call = worker.load_call(stream, beside)
            packet = wire.pack_value(worker.call(*call), for_executor=for_executor)
        except BaseException as error:
            if wire.ends_process(error, for_executor=for_executor):
                raise
            packet = wire.pack_error(error, for_executor=for_executor)
        finally:
            worker.revise_environ(changed.items())
            worker.close_received()
        if drain is not None:
            drain()
    except BaseException as leaving:
        # Also from pickling the result, or the exception: user code runs there as well.
        packet = wire.pack_error(leaving, for_executor=for_executor)
        worker.answer(reply, packet, _files())
        worker.leave(leaving)
    worker.held = None
    worker.answer(reply, packet, _files(), last=_copied)
    return _copied


def _files() -> int:
    """The socket through which files go to the parent: that of the requests, the other way."""
    return -1 if _requests is None else _requests.fileno()


def _note_copy() -> None:
    """In the parent of a fork: unless it forked a worker, the child has the result channel."""
    global _copied
    if _requests is None:
        return
    forks = sys.modules.get(f"{__package__}.forks")
    _copied |= forks is None or not forks.is_handing_over()


def _close() -> None:
    """Take no more work: at the end, and in a forked child, where what it answers is its last."""
    global _requests, _copied
    if _requests is not None:
        os.close(_requests.detach())
        os.close(_begun)
        _requests = None
        _copied = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_note_copy, after_in_child=_close)
