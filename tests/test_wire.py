"""Frames, without processes: what is packed here is what is loaded there."""

from __future__ import annotations

import os
import pickle
import threading
from typing import Any, Callable, NoReturn, Optional

import pytest

from jobserver import memory, pickles, tracebacks, wire
from jobserver.channel import ResultChannel
from jobserver.protocols import Closed
from tests.work import add


def sent(packet: wire.Packet, monkeypatch: pytest.MonkeyPatch, most: int = 1 << 30) -> list[bytes]:
    """What is written of a packet, by each write, when one takes at most so many bytes."""
    writes: list[bytes] = []

    def write(fd: int, part: memoryview) -> int:
        assert fd == -7
        assert len(part) > 0
        writes.append(bytes(part[:most]))
        return len(writes[-1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        patch.setattr(memory, "open_unnamed", None)  # there is nothing to send a file through
        packet.send(-7, last=False)
    return writes


def arrived(packet: wire.Packet, monkeypatch: pytest.MonkeyPatch) -> wire.Frame:
    content = b"".join(sent(packet, monkeypatch))
    kind, count, text, body = wire.HEADER.unpack_from(content)
    assert count == 0
    view = memoryview(content)[wire.HEADER.size :]
    assert len(view) == text + body
    return wire.Frame(kind, str(view[:text], "utf-8"), view[text:])


def fail(error: BaseException) -> NoReturn:
    raise error


def caught(error: BaseException, call: Callable[[BaseException], object] = fail) -> BaseException:
    try:
        call(error)
    except BaseException as same:
        return same
    raise AssertionError("nothing was raised")


class Plain(Exception):
    pass


class Unfit(Exception):
    """Arrives, but cannot be rebuilt there."""

    def __init__(self, one: object, another: object) -> None:
        super().__init__(one)


class Interrupting:
    def __reduce__(self) -> tuple[object, ...]:
        return fail, (KeyboardInterrupt("here"),)


VALUES: list[Any] = [None, True, 7, 1.5, "text", b"bytes", [1, {"a": (2,)}], add, b"x" * (1 << 17)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_loaded_as_it_was_packed(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = arrived(wire.pack_value(value), monkeypatch)
    assert (frame.kind, frame.text) == (wire.VALUE, "")
    assert frame.load() == value
    assert type(frame.load()) is type(value)


def test_values_of_plain_types_ask_no_reducers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles.Pickled, "pickler", None)
    for value in (None, True, 7, 1.5, "text", b"bytes"):
        assert arrived(wire.pack_value(value), monkeypatch).load() == value


def test_a_value_that_is_an_exception_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = arrived(wire.pack_value(Plain("fine")), monkeypatch).load()
    assert isinstance(loaded, Plain)
    assert loaded.__cause__ is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Plain("why"), wire.ERROR),
        (OSError(2, "gone"), wire.ERROR),
        (SystemExit(3), wire.EXIT),
        (KeyboardInterrupt(), wire.EXIT),
        (GeneratorExit(), wire.ERROR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_brings_its_traceback(
    error: BaseException, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = arrived(wire.pack_error(caught(error)), monkeypatch)
    assert frame.kind == kind
    loaded = frame.load()
    assert isinstance(loaded, type(error))
    assert loaded.args == error.args
    cause = loaded.__cause__
    assert isinstance(cause, tracebacks.RemoteTraceback)
    assert cause.text == frame.text
    assert cause.args == (frame.text,)
    assert str(cause) == f'\n"""\n{frame.text}"""'
    assert frame.text.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in frame.text


def test_kinds_differ() -> None:
    assert len({wire.VALUE, wire.ERROR, wire.EXIT}) == 3


@pytest.mark.parametrize("packet", [wire.pack_value(1), wire.pack_error(Plain("why"))])
def test_the_last_frame_says_so(packet: wire.Packet) -> None:
    channel = ResultChannel()
    for last in (False, True):
        packet.send(channel.reply, last=last)
        frame = channel.receive()
        assert isinstance(frame, wire.Frame)
        assert (frame.kind, frame.last) == (packet.kind, last)
    packet.send(channel.reply)  # as one does that says nothing of others
    frame = channel.receive()
    assert isinstance(frame, wire.Frame)
    assert frame.last
    assert wire.Frame(wire.VALUE, "", memoryview(b"")).last  # likewise
    channel.close_reply()
    assert channel.receive() is Closed.CLOSED
    channel.close()


def package(source: str, **names: object) -> Callable[[BaseException], object]:
    """A function `outer`, as if it were of the package."""
    module: dict[str, Any] = {"__package__": "jobserver", **names}
    exec(source, module)
    outer: Callable[[BaseException], object] = module["outer"]
    return outer


def text_of(outer: Callable[[BaseException], object]) -> str:
    """The traceback of what it raises, from its own frame on."""
    error = caught(Plain("why"), outer)
    assert error.__traceback__ is not None
    return tracebacks.traceback_text(error.with_traceback(error.__traceback__.tb_next))


def test_the_frames_of_the_package_above_the_work_are_left_out() -> None:
    def work(error: BaseException) -> object:
        return wire.load_ending((wire.ERROR, b"", pickle.dumps(error), (), ()))

    text = text_of(package("def outer(x): inner(x)\ndef inner(x): work(x)", work=work))
    assert "in outer\n" not in text
    assert "in inner\n" not in text
    assert "in work\n" in text
    # What the work calls of the package is part of its story.
    assert "in load_ending\n" in text


def test_an_exception_of_the_package_keeps_its_last_frame() -> None:
    text = text_of(package("def outer(x): inner(x)\ndef inner(x): raise x"))
    assert "in outer\n" not in text
    assert "in inner\n" in text


def test_an_exception_that_was_never_raised() -> None:
    assert tracebacks.traceback_text(Plain("why")) == "tests.test_wire.Plain: why\n"


def test_a_traceback_that_cannot_be_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    import traceback

    def broken(*_: object) -> NoReturn:
        raise ZeroDivisionError("no words")

    monkeypatch.setattr(traceback, "format_exception", broken)
    text = tracebacks.traceback_text(Plain("why"))
    assert text.startswith("'tests.test_wire.Plain' (")
    assert "ZeroDivisionError('no words')" in text


def test_a_text_that_is_no_utf_8_arrives_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = arrived(wire.pack_error(Plain("\udcff")), monkeypatch)
    assert "\\udcff" in frame.text


@pytest.mark.parametrize(
    ("value", "name"), [(threading.Lock(), "'_thread.lock'"), ((x for x in ""), "'generator'")]
)
def test_a_value_that_is_not_picklable(
    value: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = arrived(wire.pack_value(value), monkeypatch)
    assert frame.kind == wire.ERROR
    loaded = frame.load()
    assert isinstance(loaded, RuntimeError)
    assert f"result of type {name} is not picklable: TypeError(" in str(loaded)
    # The traceback is that of the pickling: it says where in the value the trouble is.
    assert "in dump\n" in frame.text


@pytest.mark.parametrize("kind", [Plain, SystemExit])
def test_an_exception_that_is_not_picklable(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    packet = wire.pack_error(caught(kind(threading.Lock())))
    frame = arrived(packet, monkeypatch)
    assert frame.kind == (wire.EXIT if kind is SystemExit else wire.ERROR)
    loaded = frame.load()
    assert isinstance(loaded, RuntimeError)
    assert f"{kind.__qualname__}' is not picklable: TypeError(" in str(loaded)
    assert "in fail\n" in frame.text
    assert "in dump\n" not in frame.text


@pytest.mark.parametrize("text", ["", "the worker's words"])
@pytest.mark.parametrize(("kind", "name"), [(wire.VALUE, "result"), (wire.ERROR, "exception")])
def test_what_cannot_be_rebuilt(kind: int, name: str, text: str) -> None:
    frame = wire.Frame(kind, text, memoryview(pickle.dumps(Unfit(1, 2))))
    with pytest.raises(RuntimeError, match=f"the {name} of the work is not recons") as raised:
        frame.load()
    cause = raised.value.__cause__
    assert isinstance(cause, TypeError)
    assert repr(cause) in str(raised.value)
    if text:
        assert isinstance(cause.__cause__, tracebacks.RemoteTraceback)
        assert cause.__cause__.text == text
    else:
        assert cause.__cause__ is None


@pytest.mark.parametrize("kind", [wire.ERROR, wire.EXIT])
def test_an_exception_that_is_none(kind: int) -> None:
    frame = wire.Frame(kind, "", memoryview(pickle.dumps(5)))
    with pytest.raises(RuntimeError, match="int is not an exception"):
        frame.load()


def test_an_interrupted_load_can_be_done_again() -> None:
    frame = wire.Frame(wire.VALUE, "", memoryview(pickle.dumps(Interrupting())))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="here") as raised:
            frame.load()
        assert raised.value.__cause__ is None


def test_a_small_frame_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, 60_000):
        assert len(sent(wire.pack_value(b"x" * size), monkeypatch)) == 1


def test_a_large_body_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    value = b"x" * (1 << 20)
    packet = wire.pack_value([value])
    assert sum(part is value for part in packet.pickled.stream) == 1
    assert value in sent(packet, monkeypatch)


def test_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "LARGE", 100)
    for size in (99, 100):
        pickled = pickles.Pickled()
        pickled.write(bytes(size))
        assert pickled.is_large is (size == 100)


def test_a_file_is_sent_through_a_socket_of_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0 as well, where standard input is closed."""
    through: list[int] = []

    def send_files(over: int, files: list[int], content: bytes) -> int:
        through.append(over)
        return len(content)

    monkeypatch.setattr(pickles, "LARGE", 100)
    monkeypatch.setattr(memory, "send_files", send_files)
    wire.pack_value(b"x" * 100).send(0, 0)
    assert through == [0]


@pytest.mark.parametrize("size", [0, 1 << 17])
@pytest.mark.parametrize("most", [1, 7, 65_536])
def test_what_one_write_leaves_is_written_by_the_next(
    size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"0123456789" * (size // 10)
    pickled = pickles.Pickled()
    pickled.write(body)
    packet = wire.Packet(wire.ERROR, "a text", pickled)
    whole = b"".join(sent(packet, monkeypatch))
    assert b"".join(sent(packet, monkeypatch, most)) == whole
    assert whole == wire.HEADER.pack(wire.ERROR, 0, 6, len(body)) + b"a text" + body


def ending(packet: wire.Packet) -> wire.Ending:
    return packet.kind, packet.text, b"".join(packet.pickled.stream), packet.pickled.buffers, ()


def test_one_of_several_endings() -> None:
    assert wire.load_ending(ending(wire.pack_value([1]))) == [1]
    value: Optional[object] = wire.load_ending(ending(wire.pack_value(Plain("fine"))))
    assert isinstance(value, Plain)
    with pytest.raises(Plain, match="why") as raised:
        wire.load_ending(ending(wire.pack_error(caught(Plain("why")))))
    assert isinstance(raised.value.__cause__, tracebacks.RemoteTraceback)


class Strange:
    """Of no built-in type."""


def endings_of(*ends: object) -> wire.Endings:
    """Of several calls in one frame, each of which returned this or, if it can be, raised it."""
    raised = {at: end for at, end in enumerate(ends) if isinstance(end, BaseException)}
    apart = {at: wire.pack_error(caught(error)).ending() for at, error in raised.items()}
    values = [None if at in raised else end for at, end in enumerate(ends)]
    return wire.Endings(wire.pack_values(values, apart), apart)


def test_several_endings_are_taken_in_order() -> None:
    endings = endings_of(Plain("a"), 1, [2], Plain("b"), SystemExit(3), None)
    taken: list[object] = []
    for left in range(6, 0, -1):
        assert len(endings) == left
        try:
            taken.append(endings.take())
        except (Plain, SystemExit) as error:
            taken.append(str(error))
    assert len(endings) == 0
    assert taken == ["a", 1, [2], "b", "3", None]


def test_values_come_together_up_to_the_next_exception() -> None:
    endings = endings_of(1, 2, Plain("a"), 3)
    assert list(endings.take_together()) == [1, 2]
    assert list(endings.take_together()) == []
    with pytest.raises(Plain, match="a"):
        endings.take()
    assert list(endings.take_together()) == [3]
    assert list(endings.take_together()) == []


def test_a_value_that_is_not_picklable_costs_no_other() -> None:
    endings = endings_of(1, threading.Lock(), Strange(), Plain("a"))
    assert list(endings.take_together()) == []
    assert endings.take() == 1
    with pytest.raises(RuntimeError, match="lock' is not picklable"):
        endings.take()
    assert isinstance(endings.take(), Strange)
    with pytest.raises(Plain, match="a"):
        endings.take()
    assert len(endings) == 0
