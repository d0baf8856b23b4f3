"""Large values: a file without a name, in memory, which one process writes and another maps.

A pipe takes 64 KiB at a time, from a writer that waits for its reader. Here a value is written
once, whatever the receiver does meanwhile, and is used where it lies. Nothing has to be removed:
the kernel frees the file with its last descriptor and mapping, however the processes end.

The file has blocks: the buffers of a pickle, and then its stream, at which the file is positioned.
A large one begins with a page, and is mapped by itself, as somebody may look for the object behind
a buffer (`memoryview.obj`). Small ones follow one another, and are read.

The mapping is private: what a receiver writes into it is its own, copied page by page as it is
written to. So a forked child cannot change what its parent has; and work that is given to a second
worker, because the first had not begun it, arrives there as it was sent.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import weakref

TYPE_CHECKING = False  # spares every spawned worker the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Union

_MOST_FILES = 253  # in one message: SCM_MAX_FD of Linux
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

# Before Python 3.13 a mapping keeps a descriptor open. So that they do not run out (a usual limit
# is 1,024), only so many are mapped at once, and others are read, which is one copy more.
_MOST_MAPPED = 100
_MAPPED = 1 << 14  # bytes; to map what is smaller takes longer than to read it
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def open_unnamed() -> int:
    """An empty file without a name, in memory where that can be."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("jobserver", os.MFD_CLOEXEC)
    import tempfile  # it brings random, which every forked child seeds anew

    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


def store(file: int, buffers: Iterable[memoryview], stream: Sequence[bytes]) -> None:
    """Fill an empty file."""
    end = 0
    for buffer in buffers:
        start = _start(len(buffer), end)
        _write(file, buffer, start)
        end = start + len(buffer)
    start = _start(sum(map(len, stream)), end)
    os.lseek(file, start, os.SEEK_SET)
    for part in stream:
        _write(file, part, start)
        start += len(part)


def blocks(file: int, sizes: Iterable[int]) -> list[memoryview]:
    """The first blocks of a file, which are of these sizes: writable, and this process's own."""
    found: list[memoryview] = []
    end = 0
    for size in sizes:
        start = _start(size, end)
        found.append(memoryview(_block(file, size, start)))
        end = start + size
    return found


def _start(size: int, end: int) -> int:
    """Where a block lies, behind one that ends there."""
    if size < _MAPPED:
        return end
    return -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def _block(file: int, size: int, start: int) -> Union[mmap.mmap, bytearray]:
    if size >= _MAPPED and (sys.version_info >= (3, 13) or len(_mapped) < _MOST_MAPPED):
        try:
            return _map(file, size, start)
        except OSError:
            pass  # no descriptor, or more mappings than a process may have
    content = bytearray(size)
    with memoryview(content) as rest:
        done = 0
        while done < size:
            done += os.preadv(file, [rest[done:]], start + done)
    return content


def _map(file: int, size: int, start: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(file, size, access=mmap.ACCESS_COPY, offset=start, trackfd=False)
    mapped = mmap.mmap(file, size, access=mmap.ACCESS_COPY, offset=start)
    _mapped.add(mapped)
    return mapped


def _write(file: int, content: Union[bytes, memoryview], start: int) -> None:
    # One write takes 2 GiB at most.
    with memoryview(content) as rest:
        done = 0
        while done < len(rest):
            done += os.pwrite(file, rest[done:], start + done)


def send_files(over: int, files: Sequence[int], content: bytes) -> int:
    """Send files through a socket, with the first byte of some: how many of them were sent."""
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, over)
    try:
        sender.settimeout(None)  # whatever `socket.setdefaulttimeout` has it be
        return socket.send_fds(sender, [content], files)
    finally:
        sender.detach()


def receive_files(over: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """At most that many bytes from a socket, and the files that were sent with them.

    Does not wait: BlockingIOError when nothing has come. Fewer files come than were sent when this
    process has no descriptors for them.
    """
    content, files, _, _ = socket.recv_fds(over, most, _MOST_FILES, socket.MSG_DONTWAIT | _CLOEXEC)
    if not _CLOEXEC:
        for file in files:
            os.set_inheritable(file, False)
    return content, files
