"""Large values travel in memory that both processes have, and arrive as they always did."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from jobserver import Jobserver, JobserverExecutor, LostResult, memory, pickles, wire
from jobserver.channel import ResultChannel
from jobserver.protocols import Closed
from tests import arrays
from tests.arrays import SIZE, is_mapped
from tests.processes import await_state, check_slots, pid_of, run_program
from tests.work import PATIENCE, add, blob, getpid, identity


@pytest.fixture
def np() -> Any:
    return pytest.importorskip("numpy")


@pytest.fixture(params=["fresh", "reused"])
def js(method: str, request: pytest.FixtureRequest) -> Iterator[Jobserver]:
    with Jobserver(method, 2) as fresh:
        yield fresh if request.param == "fresh" else fresh.replace_workers()


@pytest.fixture(params=["fresh", "reused"])
def forking(request: pytest.FixtureRequest) -> Iterator[Jobserver]:
    """Its workers have what a test has put in the place of something."""
    with Jobserver("fork", 2) as fresh:
        yield fresh if request.param == "fresh" else fresh.replace_workers()


def mappings() -> int:
    """How many mappings of files in memory this process has."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:jobserver")


# What arrives


def test_an_array_arrives_without_a_copy_and_can_be_written(js: Jobserver, np: Any) -> None:
    result = js(arrays.ones).result(PATIENCE)
    assert is_mapped(result)
    assert result.flags.writeable
    result += 1
    assert (result == 2).all()


def test_an_array_is_an_argument_without_a_copy(js: Jobserver, method: str, np: Any) -> None:
    mapped, writeable, total = js(arrays.look, arrays.ones()).result(PATIENCE)
    # A worker that is forked for it has the array itself.
    assert mapped or (method == "fork" and js.replace_workers() is not js)
    assert writeable
    assert total == SIZE // 8


def test_what_the_work_changes_of_it_is_the_works(js: Jobserver, np: Any) -> None:
    argument = arrays.ones()
    for _ in range(3):
        assert (js(arrays.double, argument).result(PATIENCE) == 2).all()
    assert (argument == 1).all()
    # One that came as a result is no other.
    result = js(identity, argument).result(PATIENCE)
    assert (js(arrays.double, result).result(PATIENCE) == 2).all()
    assert (result == 1).all()


def test_through_an_executor(method: str, np: Any) -> None:
    with Jobserver(method, 2) as js:
        for given in (js, js.replace_workers()):
            with JobserverExecutor(given) as executor:
                result = executor.submit(arrays.double, arrays.ones()).result(PATIENCE)
                assert is_mapped(result)
                assert (result == 2).all()
                for chunksize in (1, 2):
                    sizes = [SIZE, 80, 2 * SIZE]
                    found = executor.map(arrays.ones, sizes, chunksize=chunksize)
                    assert [is_mapped(result) for result in found] == [True, False, True]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_through_map(js: Jobserver, np: Any, chunksize: int) -> None:
    calls = [(arrays.ones(SIZE * number),) for number in range(5)]
    results = list(js.map(arrays.double, calls, chunksize=chunksize))
    assert [result.nbytes for result in results] == [call[0].nbytes for call in calls]
    assert all((result == 2).all() for result in results)
    assert [is_mapped(result) for result in results] == [False, True, True, True, True]


def test_nested(js: Jobserver, np: Any) -> None:
    result = js(arrays.nested, js, SIZE).result(PATIENCE)
    assert is_mapped(result)
    assert (result == 2).all()


@pytest.mark.parametrize("index", range(11))
def test_arrays_of_every_kind_arrive_as_from_a_plain_pickle(index: int, np: Any) -> None:
    value = arrays.array_value(index)
    # In band, as ProcessPoolExecutor pickles: all that arrives is writable.
    expected = pickle.loads(pickle.dumps(value, 4))
    with Jobserver("fork", 1) as base:
        js = base.replace_workers()
        for found in (
            js(arrays.array_value, index).result(PATIENCE),
            js(identity, value).result(PATIENCE),
        ):
            assert type(found) is type(expected)
            pairs = zip(found, expected) if isinstance(expected, list) else [(found, expected)]
            for one, other in pairs:
                assert type(one) is type(other)
                if isinstance(other, np.ndarray):
                    assert one.dtype == other.dtype
                    assert one.shape == other.shape
                    for flag in ("WRITEABLE", "C_CONTIGUOUS", "F_CONTIGUOUS", "ALIGNED"):
                        assert one.flags[flag] == other.flags[flag], flag
                    assert np.array_equal(one, other)
                else:
                    assert one == other
            if isinstance(expected, list) and expected[0] is expected[1]:
                assert found[0] is found[1]


@pytest.mark.parametrize("index", range(len(arrays.plain_values())))
def test_other_values_arrive_as_from_a_plain_pickle(index: int) -> None:
    value = arrays.plain_value(index)
    expected = pickle.loads(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    with Jobserver("fork", 1) as base:
        js = base.replace_workers()
        assert len(list(js.map(arrays.plain_value, [(index,)] * 2, chunksize=2))) == 2
        found = js(arrays.plain_value, index).result(PATIENCE)
        assert type(found) is type(expected)
        assert found == expected
        assert js(type_and_value, value).result(PATIENCE) == (type(expected).__name__, expected)


def type_and_value(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_around_the_size_from_which_a_value_is_large(js: Jobserver, np: Any, more: int) -> None:
    size = pickles.LARGE // 8 + more
    assert is_mapped(js(arrays.ones, 8 * size).result(PATIENCE)) == (more >= 0)
    text = blob(pickles.LARGE + more)
    assert js(identity, text).result(PATIENCE) == text


def test_an_exception_with_a_large_value(js: Jobserver, np: Any) -> None:
    with pytest.raises(ValueError, match="1") as caught:
        js(arrays.raise_with, SIZE).result(PATIENCE)
    assert is_mapped(caught.value.args[0])
    assert "in raise_with" in str(caught.value.__cause__)


def test_what_cannot_be_pickled_beside_a_large_value(js: Jobserver, np: Any) -> None:
    before = mappings()
    with pytest.raises(RuntimeError, match="of type 'list' is not picklable: TypeError"):
        js(arrays.fail_to_pickle, SIZE).result(PATIENCE)
    reused = js.replace_workers()
    with pytest.raises(TypeError, match="not picklable"):
        reused(identity, arrays.fail_to_pickle(SIZE))
    assert reused(add, 1, 2).result(PATIENCE) == 3
    assert mappings() == before


def test_work_that_is_given_to_another_worker(method: str, np: Any) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        pid = js(getpid).result(PATIENCE)
        os.kill(pid, signal.SIGSTOP)
        await_state(pid, "T")
        future = js(arrays.double, arrays.ones())
        os.kill(pid, signal.SIGKILL)
        assert (future.result(PATIENCE) == 2).all()


def test_default_timeouts_of_sockets_are_not_ours(forking: Jobserver, np: Any) -> None:
    for _ in range(2):
        assert is_mapped(forking(arrays.ones_with_default_timeout, SIZE).result(PATIENCE))
    socket.setdefaulttimeout(0.001)
    try:
        with Jobserver("fork", 1) as another:
            for handle in (forking, another, another.replace_workers()):
                assert is_mapped(handle(arrays.double, arrays.ones()).result(PATIENCE))
    finally:
        socket.setdefaulttimeout(None)


# When it is freed


def test_it_is_freed_with_its_last_user(js: Jobserver, np: Any) -> None:
    before = mappings()
    future = js(arrays.ones)
    result = future.result(PATIENCE)
    assert mappings() == before + 1
    part = result[5:]
    del future, result
    assert mappings() == before + 1
    del part
    assert mappings() == before


def test_results_that_nobody_asks_for_are_freed_with_their_futures(js: Jobserver, np: Any) -> None:
    before = mappings()
    futures = [js(arrays.ones) for _ in range(4)]
    for future in futures:
        assert future.wait(PATIENCE)
    assert mappings() > before
    del futures, future
    assert mappings() == before


def test_a_worker_does_not_wait_for_a_reader(method: str, np: Any) -> None:
    with Jobserver(method, 1) as js:
        future = js(arrays.ones)
        await_state(pid_of(future), "Z")
        assert is_mapped(future.result(PATIENCE))


def test_a_reused_worker_keeps_no_argument(method: str, np: Any) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers()
        before = js(count_mappings).result(PATIENCE)
        assert js(arrays.look, arrays.ones()).result(PATIENCE)[0]
        assert js(count_mappings).result(PATIENCE) == before


def count_mappings() -> int:
    return mappings()


@pytest.mark.parametrize("sent", [False, True])
def test_a_worker_killed_while_it_sends(
    forking: Jobserver, np: Any, sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the file, and before its frame: it is a loss, and nothing is left."""
    before = mappings()
    send = memory.send_files

    def send_and_end(over: int, files: list[int], content: bytes) -> int:
        return arrays.end_here(sent and send(over, files, content[:1]))

    monkeypatch.setattr(memory, "send_files", send_and_end)
    with pytest.raises(LostResult) as caught:
        forking(arrays.ones).result(PATIENCE)
    assert caught.value.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    assert mappings() == before
    check_slots(forking, 2, tmp_path / "slots")


def killed_with_everything(method: str) -> None:
    """A program that dies while it has large results, and others are on their way."""
    with Jobserver(method, 2) as fresh:
        js = fresh.replace_workers()
        kept = [js(arrays.ones, SIZE).result(PATIENCE), js(arrays.double, arrays.ones())]
        fresh(arrays.ones, SIZE)
        assert is_mapped(kept[0])
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_parent_that_is_killed_leaves_nobody(method: str, np: Any) -> None:
    run_program(killed_with_everything, method, status=-signal.SIGKILL)


# Where there is too little


@pytest.mark.parametrize("make", [arrays.streamed_ones, arrays.ones_without_descriptors])
def test_without_a_file_it_goes_through_the_channel(
    method: str, np: Any, make: Callable[[int], Any]
) -> None:
    with Jobserver(method, 1) as js:
        for handle in (js, js.replace_workers()):
            result = handle(make, SIZE).result(PATIENCE)
            assert not is_mapped(result)
            assert result.flags.writeable
            assert (result == 1).all()


def test_a_file_that_cannot_be_sent(
    forking: Jobserver, np: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is in the frame then."""
    send, parent = socket.send_fds, os.getpid()

    def refuse(*args: Any) -> int:
        if os.getpid() != parent:
            raise OSError(errno.ETOOMANYREFS, "as told")
        return send(*args)

    monkeypatch.setattr(socket, "send_fds", refuse)
    for _ in range(2):
        result = forking(arrays.ones).result(PATIENCE)
        assert not is_mapped(result)
        assert (result == 1).all()


@pytest.mark.parametrize("beside", [False, True])
def test_a_result_for_which_there_is_no_descriptor(beside: bool) -> None:
    with contextlib.ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        channel = ResultChannel(ours if beside else None)
        stack.callback(channel.close)
        stack.callback(channel.close_reply)
        files = theirs.fileno() if beside else channel.reply
        packet = wire.pack_value(blob(SIZE))
        packet.send(channel.reply, files, last=False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            frame = channel.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(frame, wire.Frame)
        assert (frame.kind, frame.last) == (wire.ERROR, False)
        error = frame.load()
        assert isinstance(error, OSError)
        assert error.errno == errno.EMFILE
        assert "large result" in str(error)
        # The next one is none the worse for it.
        packet.send(channel.reply, files)
        frame = channel.receive()
        assert isinstance(frame, wire.Frame)
        assert frame.load() == blob(SIZE)


def test_many_at_once_do_not_use_up_the_descriptors(np: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    with Jobserver("fork", 2) as base:
        js = base.replace_workers()
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 160, hard))
        try:
            futures = [js(arrays.ones, pickles.LARGE) for _ in range(250)]
            for future in futures:
                assert future.wait(PATIENCE)
            results = [future.result() for future in futures]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all((arrays.double(result) == 2).all() for result in results)


# The file, and the channel


def test_blocks_are_those_that_were_stored_and_their_own() -> None:
    buffers = [memoryview(bytearray(os.urandom(size))) for size in (1, 4096, 4097, 70_000)]
    stream = [b"a", b"stream"]
    file = memory.open_unnamed()
    try:
        memory.store(file, buffers, stream)
        assert os.read(file, 100) == b"astream"  # it is positioned there
        sizes = [*map(len, buffers), 7]
        first = memory.blocks(file, sizes)
        second = memory.blocks(file, sizes)
        assert [bytes(block) for block in first] == [*map(bytes, buffers), b"astream"]
        for block in first:
            assert len(memoryview(block.obj)) == len(block)
            block[:] = bytes(len(block))
        assert first[:4] != second[:4]
        assert [bytes(block) for block in second] == [*map(bytes, buffers), b"astream"]
    finally:
        os.close(file)


def test_blocks_that_cannot_be_mapped_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "as told")

    monkeypatch.setattr(memory, "_map", refuse)
    file = memory.open_unnamed()
    try:
        memory.store(file, [memoryview(b"x" * 5000)], [b"stream"])
        assert memory.blocks(file, [5000, 6]) == [b"x" * 5000, b"stream"]
    finally:
        os.close(file)


def test_no_frame_is_sent_without_its_file() -> None:
    channel = ResultChannel()
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(ConnectionError):
        wire.pack_value(blob(SIZE)).send(channel.reply, theirs.fileno())
    channel.close_reply()
    assert channel.receive() is Closed.CLOSED
    channel.close()


@pytest.mark.parametrize("length", [1, wire.HEADER.size, wire.HEADER.size + 1])
def test_a_channel_that_ends_within_the_frame(length: int) -> None:
    channel = ResultChannel()
    frame = wire.HEADER.pack(wire.VALUE | wire.IN_FILE, 1, 0, wire.SIZE.size) + b"size"
    file = memory.open_unnamed()
    assert memory.send_files(channel.reply, [file], frame[:length]) == length
    os.close(file)
    assert channel.receive() is None
    channel.close_reply()
    assert channel.receive() is Closed.CLOSED
    channel.close()


def test_a_platform_without_sockets_that_pass_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "send_fds")
    channel = ResultChannel()
    wire.pack_value("text").send(channel.reply)
    frame = channel.receive()
    assert isinstance(frame, wire.Frame)
    assert frame.load() == "text"
    channel.close_reply()
    channel.close()
