"""Descriptors in results: sockets and connections travel with the answer, and nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
from collections.abc import Iterator
from multiprocessing import reduction
from typing import Any

import pytest

from jobserver import Jobserver, JobserverExecutor, descriptors, memory, pickles, wire
from jobserver.channel import ResultChannel
from jobserver.protocols import Closed
from tests import couriers
from tests.faces import FACES, JOBSERVERS, face, raised_by
from tests.processes import await_state, pid_of
from tests.work import PATIENCE, add, identity

LARGE = 3 * pickles.LARGE


def open_here() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_more_than(count: int) -> Iterator[None]:
    """This process has room for that many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(count + 1)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@pytest.mark.parametrize("name", FACES)
def test_a_connection_and_a_socket_arrive(method: str, name: str) -> None:
    with face(name, method) as run:
        for _ in range(2):
            with run(couriers.greeted) as connection:
                assert connection.recv() == "hello"
                assert not os.get_inheritable(connection.fileno())
            with run(couriers.greeted_socket) as arrived:
                assert arrived.recv(100) == b"hello"
                assert arrived.family is socket.AF_UNIX
        assert run(add, 1, 2) == 3


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("size", [1, LARGE])
def test_several_arrive_wherever_they_are_in_the_value(method: str, name: str, size: int) -> None:
    with face(name, method) as run:
        value = run(couriers.bundle, 5, size)
        sockets = value["nested"]["sockets"][0]
        assert value["nested"]["again"] is value["connections"][0]
        assert len(value["beside"]) == size
        for number in range(5):
            with value["connections"][number] as connection, sockets[number] as other:
                assert connection.recv() == str(number)
                assert other.recv(100) == str(number).encode()


@pytest.mark.parametrize("name", FACES)
def test_one_in_an_exception_arrives(method: str, name: str) -> None:
    with face(name, method) as run:
        error = raised_by(run, couriers.fail_with_connection)
        assert type(error) is couriers.CourierError
        with error.args[0] as connection:
            assert connection.recv() == "from the error"


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("chunksize", [1, 2, "auto"])
def test_through_map(reused: bool, chunksize: Any) -> None:
    with Jobserver("fork", 2) as base:
        js = base.replace_workers() if reused else base
        argses = [(number,) for number in range(4)]
        results = js.map(couriers.greeted_or_fail, argses, chunksize=chunksize)
        for number in range(4):
            if number == 1:
                with pytest.raises(couriers.CourierError) as caught:
                    next(results)
                caught.value.args[0].close()
                continue
            with next(results) as connection:
                assert connection.recv() == str(number)
        with JobserverExecutor(js) as executor:
            for each in executor.map(couriers.greeted, "abc", chunksize=chunksize):
                with each:
                    assert each.recv() in "abc"


def test_any_descriptor_arrives_and_is_fetched_when_it_is_wanted(method: str) -> None:
    with Jobserver(method, 1) as js:
        assert js(add, 1, 2).result(PATIENCE) == 3
        before = open_here()
        value: Any = js(couriers.keeper).result(PATIENCE)
        for _ in range(2):
            with open(value.source.detach(), "rb") as pipe:
                assert not os.get_inheritable(pipe.fileno())
        del value
        assert open_here() == before


def test_what_has_arrived_can_be_sent_on(method: str) -> None:
    with Jobserver(method, 1).replace_workers() as js:
        value: Any = js(couriers.keeper).result(PATIENCE)
        again: Any = js(identity, value).result(PATIENCE)
        with open(again.source.detach(), "rb") as pipe:
            assert pipe.read() == b"pipe"
        with js(couriers.greeted).result(PATIENCE) as connection:
            with js(identity, connection).result(PATIENCE) as returned:
                assert returned.recv() == "hello"


def test_below_a_worker(method: str) -> None:
    with Jobserver(method, 2) as js:
        text, connection = js(couriers.give_below, js).result(PATIENCE)
        with connection:
            assert (text, connection.recv()) == ("below", "on")


@pytest.mark.parametrize("name", ["fresh", "reused", "owning"])
def test_what_only_inheritance_shares_is_refused_still(method: str, name: str) -> None:
    """As by the peer: their owner's end would break them."""
    with face(name, method) as run:
        for work in (couriers.a_lock, couriers.a_queue, couriers.a_key):
            error = raised_by(run, work)
            assert isinstance(error, (RuntimeError, TypeError))
            assert "inheritance" in str(error) or "security" in str(error)


def test_other_threads_of_the_worker_have_multiprocessing_s_own(method: str) -> None:
    with Jobserver(method, 1) as js:
        module, connection = js(couriers.pickle_meanwhile).result(PATIENCE)
        connection.close()
        assert module == "multiprocessing.resource_sharer"


# Nothing is left


@pytest.mark.parametrize("name", JOBSERVERS)
@pytest.mark.parametrize("size", [1, LARGE])
def test_a_result_that_nobody_reads_leaves_nothing(method: str, name: str, size: int) -> None:
    with Jobserver(method, 1) as base:
        js = base.replace_workers() if name == "reused" else base
        assert js(add, 1, 2).result(PATIENCE) == 3
        before = open_here()
        future = js(couriers.bundle, 3, size)
        assert future.wait(PATIENCE)
        assert open_here() >= before + 6  # they are here, unread
        del future
        assert open_here() == before


@pytest.mark.parametrize("name", ["fresh", "reused"])
@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_receiver_without_room_says_so_and_leaves_nothing(
    name: str, size: int, room: int
) -> None:
    with Jobserver("fork", 1) as base:
        js = base.replace_workers() if name == "reused" else base
        assert js(add, 1, 2).result(PATIENCE) == 3
        before = open_here()
        future = js(couriers.bundle, 3, size)
        if name == "fresh":
            await_state(pid_of(future), "Z")  # to wait for its end takes a descriptor
        with no_more_than(room):
            with pytest.raises(OSError, match=r"needs \d descriptors"):
                future.result(PATIENCE)
        del future
        assert open_here() == before
        with js(couriers.greeted).result(PATIENCE) as connection:
            assert connection.recv() == "hello"


def test_one_that_cannot_be_fetched_leaves_nothing() -> None:
    """They are here, but there is no room for the duplicates that are the user's own."""
    with Jobserver("fork", 1) as js:
        assert js(add, 1, 2).result(PATIENCE) == 3
        before = open_here()
        future = js(couriers.bundle, 3, 1)
        assert future.wait(PATIENCE)
        with no_more_than(2), pytest.raises(RuntimeError, match="not reconstructable") as caught:
            future.result(PATIENCE)
        assert "Too many open files" in str(caught.value)
        del future, caught
        assert open_here() == before


@pytest.mark.parametrize("name", ["fresh", "reused"])
def test_a_worker_without_room_says_so(method: str, name: str) -> None:
    with face(name, method) as run:
        assert run(add, 1, 2) == 3
        before = open_here()
        error = raised_by(run, couriers.scarce, 10)
        assert "not picklable" in str(error)
        assert "Too many open files" in str(error)
        del error
        if name == "fresh":
            assert open_here() == before


def test_too_many_for_one_answer_are_refused() -> None:
    with Jobserver("fork", 1) as js:
        with pytest.raises(RuntimeError, match="more than 252 files"):
            js(couriers.bundle, 127, 1).result(PATIENCE)
        value = js(couriers.bundle, 126, LARGE).result(PATIENCE)
        for each in (*value["connections"], *value["nested"]["sockets"][0]):
            each.close()


def test_an_answer_that_cannot_send_them_says_so() -> None:
    channel = ResultChannel()
    with couriers.greeted() as connection:
        wire.pack_value(connection).send(channel.reply)  # there is no socket for them
    frame = channel.receive()
    assert isinstance(frame, wire.Frame)
    assert frame.kind == wire.ERROR
    assert "cannot be sent" in str(frame.load())
    channel.close_reply()
    channel.close()


@pytest.mark.parametrize("sent", [1, wire.HEADER.size + 1])
def test_a_channel_that_ends_within_the_frame_leaves_nothing(sent: int) -> None:
    before = open_here()
    channel = ResultChannel()
    content = wire.HEADER.pack(wire.VALUE, 2, 0, 100) + b"body"
    assert memory.send_files(channel.reply, [0, 0], content[:sent]) == sent
    assert channel.receive() is None
    channel.close_reply()
    assert channel.receive() is Closed.CLOSED
    channel.close()
    assert open_here() == before


def test_a_value_is_loaded_as_often_as_it_is_wanted() -> None:
    """As after an interrupt amid the loading."""
    before = open_here()
    channel = ResultChannel()
    with couriers.greeted() as connection:
        wire.pack_value([connection]).send(channel.reply, channel.reply)
    frame = channel.receive()
    assert isinstance(frame, wire.Frame)
    first, second = frame.load(), frame.load()
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert first[0].fileno() != second[0].fileno()
    with first[0], second[0]:
        assert first[0].recv() == "hello"
    del frame
    channel.close_reply()
    channel.close()
    assert open_here() == before


def test_a_forked_child_has_what_was_not_read_before() -> None:
    with Jobserver("fork", 1) as js:
        future = js(couriers.greeted)
        assert future.wait(PATIENCE)
        pid = os.fork()
        if pid == 0:
            os._exit(future.result().recv() != "hello")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with future.result(PATIENCE):
            pass


def test_multiprocessing_s_own_is_back_after_an_answer() -> None:
    original = descriptors._dup_fd
    with couriers.greeted() as connection:
        packet = wire.pack_value([connection])
        assert len(packet.pickled.descriptors) == 1
    assert reduction.DupFd is original
