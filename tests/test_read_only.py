"""Buffers that were read-only arrive writable: what the receiver has is its own."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import pytest

from jobserver import Jobserver, JobserverExecutor, pickles
from tests import read_only
from tests.executor_help import context_of
from tests.faces import FACES, face, raised_by
from tests.work import PATIENCE, blob, identity

numpy: Any = pytest.importorskip("numpy")

SMALL, LARGE = 80, 3 * (1 << 18)


def loaded(value: Any) -> Any:
    """The value as it arrives, without processes."""
    whole = pickles.pickled(value)
    return pickles.loads(b"".join(whole.stream), [bytearray(buffer) for buffer in whole.buffers])


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_arrays_arrive_writable(method: str, name: str, size: int) -> None:
    with face(name, method) as run:
        if (name, method) != ("fresh", "fork"):  # where arguments are the caller's own
            array = read_only.frozen_ones(size)
            assert run(read_only.increase, array) == size // 8 * 2
            assert not array.flags.writeable
            assert (array == 1).all()
        got = run(read_only.frozen_ones, size)
        assert read_only.increase(got) == size // 8 * 2
        error = raised_by(run, read_only.raise_with, size)
        assert read_only.increase(error.args[0]) == size // 8 * 2


def test_the_peer_has_it_so(method: str) -> None:
    """Where its pickles hold arrays in band, which from Python 3.14 on they do no more."""
    if pickle.DEFAULT_PROTOCOL >= 5:
        pytest.skip("ProcessPoolExecutor's arrays arrive read-only")
    with face("peer", method) as run:
        assert run(read_only.increase, read_only.frozen_ones(SMALL)) == SMALL // 8 * 2
        assert run(read_only.frozen_ones, SMALL).flags.writeable


@pytest.mark.parametrize("name", ["fresh", "reused", "owning"])
def test_many_small_ones_beside_a_large_one(method: str, name: str) -> None:
    with face(name, method) as run:
        arrays, rest = run(read_only.many, 2000, SMALL, read_only.frozen_ones(LARGE))
        assert read_only.increase_all(arrays, rest) == [20.0] * 2000
        if (name, method) != ("fresh", "fork"):
            given = [read_only.frozen_ones(SMALL) for _ in range(2000)]
            sums = run(read_only.increase_all, given, read_only.frozen_ones(LARGE))
            assert sums == [20.0] * 2000


@pytest.mark.parametrize("chunksize", [3, "auto"])
def test_in_chunks(chunksize: Any) -> None:
    with Jobserver("fork", 1).replace_workers() as js:
        for size in (SMALL, LARGE):
            got = list(js.map(read_only.frozen_ones, [(size,)] * 4, chunksize=chunksize))
            assert read_only.all_writable(*got)
            given = [(read_only.frozen_ones(size),) for _ in range(4)]
            assert list(js.map(read_only.increase, given, chunksize=chunksize)) == [size / 4] * 4
        with JobserverExecutor(js) as executor:
            got = list(executor.map(read_only.frozen_ones, [SMALL] * 4, chunksize=chunksize))
            assert read_only.all_writable(*got)


def test_for_an_initializer() -> None:
    for size in (SMALL, LARGE):
        array = read_only.frozen_ones(size)
        with JobserverExecutor(
            1, context_of("spawn"), read_only.increase, (array,)
        ) as executor:  # would break if it raised
            assert executor.submit(identity, 1).result(PATIENCE) == 1


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_bytes_of_values_that_look_like_pickles_stay_as_they_are(size: int) -> None:
    misleading = [read_only.MISLEADING, read_only.MISLEADING * 3, "\u0097\u0098", b"\x97", 0x9897]
    arrays = [read_only.frozen_ones(size), read_only.frozen_ones(size)]
    got = loaded([misleading, arrays, {"again": arrays[0]}, read_only.MISLEADING * (1 << 16)])
    assert got[0] == misleading
    assert read_only.all_writable(*got[1])
    assert got[2]["again"] is got[1][0]
    assert (got[1][0] == 1).all()
    assert got[3] == read_only.MISLEADING * (1 << 16)


def test_what_is_sent_is_a_pickle_that_others_can_read() -> None:
    whole = pickles.pickled([read_only.frozen_ones(LARGE), read_only.MISLEADING, "text"])
    names = [opcode.name for opcode, _, _ in pickletools.genops(b"".join(whole.stream))]
    assert "READONLY_BUFFER" not in names
    assert names.count("NEXT_BUFFER") == 1
    assert names[-1] == "STOP"


def test_any_buffer_is_writable_but_for_bytes() -> None:
    """Who has bytes keeps bytes, which are not to change."""
    for size in (SMALL, LARGE):
        frozen = memoryview(numpy.zeros(size, dtype="u1")).toreadonly()
        window, of_bytes = loaded([read_only.Window(frozen), read_only.Window(blob(size))])
        window.content[0] = 1
        assert bytes(window.content) == b"\1" + bytes(size - 1)
        assert type(of_bytes.content.obj) is bytes


def test_where_there_are_no_files_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "LARGE", 1 << 60)
    got = loaded([read_only.frozen_ones(LARGE), numpy.ones(LARGE // 8)])
    assert read_only.all_writable(*got)


def test_what_is_small_is_in_the_stream_again() -> None:
    whole = pickles.pickled([read_only.frozen_ones(SMALL)] * 3)
    assert not whole.buffers
    assert whole.size == sum(map(len, whole.stream)) < 1000


def test_a_mapping_is_not_the_callers(method: str) -> None:
    with Jobserver(method, 1).replace_workers() as js:
        array = read_only.frozen_ones(LARGE)
        for _ in range(2):
            assert js(read_only.increase, array).result(PATIENCE) == LARGE // 8 * 2
        first, second = (js(identity, array).result(PATIENCE) for _ in range(2))
        first[0] = 7
        assert (second[0], array[0]) == (1, 1)
