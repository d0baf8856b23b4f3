"""The immutable handle and its settings: environment, preexec, admission gate."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Optional

import attrs
import pytest

from jobserver import Blocked, Future, Jobserver, LostResult
from jobserver.settings import Settings
from tests import errands
from tests.processes import check_slots
from tests.work import PATIENCE, Gate, add, await_file, echo, getpid, pass_gate, raise_value_error

# Longer than an answer takes on a busy machine, and shorter than a wait that went wrong.
SOON = PATIENCE / 3

NAME = "JOBSERVER_TEST"  # a variable that nothing else looks at
OTHER = "JOBSERVER_TEST_OTHER"


@pytest.fixture(autouse=True)
def _neither_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv(OTHER, raising=False)


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def none() -> None:
    return None


# Immutability

Revise = Callable[[Jobserver], Jobserver]

revisions = pytest.mark.parametrize(
    "revise",
    [
        lambda js: js.revise_env({NAME: "1"}),
        lambda js: js.replace_preexec(none),
        lambda js: js.replace_sleep(none),
    ],
    ids=["revise_env", "replace_preexec", "replace_sleep"],
)


def test_a_handle_is_an_attrs_class_and_frozen() -> None:
    js = Jobserver("fork", 1)
    assert attrs.has(Jobserver)
    for name in ("context", "new", *(field.name for field in attrs.fields(Jobserver))):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(js, name, None)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            delattr(js, name)
    assert js(add, 1, 2).result(PATIENCE) == 3


@revisions
def test_a_revision_is_a_new_handle_on_the_same_slots(revise: Revise, tmp_path: Path) -> None:
    js = Jobserver("fork", 2)
    revised = revise(js)
    assert type(revised) is Jobserver
    assert revised is not js
    assert revised.context is js.context
    with Gate(tmp_path) as gate:
        futures = [handle.submit(pass_gate, args=(gate.path,)) for handle in (js, revised)]
        for handle in (js, revised):
            with pytest.raises(Blocked):
                handle.submit(add, args=(1, 2), timeout=0)
        gate.open()
        for future in futures:
            assert future.wait(PATIENCE)
    check_slots(revised, 2, tmp_path / "check")


def test_revisions_leave_the_old_handle_as_it_was(method: str, tmp_path: Path) -> None:
    asked: list[int] = []
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1)
    js.revise_env({NAME: "1"})
    js.replace_preexec(errands.keep_diary, path)
    js.replace_sleep(lambda: asked.append(1))
    assert js(errands.environment, NAME).result(PATIENCE) == [None]
    assert not os.path.exists(path)
    assert not asked


def test_revisions_of_different_kinds_add_up(method: str, tmp_path: Path) -> None:
    asked: list[int] = []
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1)
    first = js.revise_env({NAME: "1"}).replace_preexec(errands.append_environment, path, NAME)
    both = first.replace_sleep(lambda: asked.append(os.getpid()))
    assert both(errands.environment, NAME).result(PATIENCE) == ["1"]
    assert lines(path) == ["1"]
    assert asked == [os.getpid()]


@revisions
def test_a_closed_handle_cannot_be_revised_into_an_open_one(revise: Revise) -> None:
    js = Jobserver("fork", 1)
    with js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        revise(js).submit(add, args=(1, 2))


# revise_env


class Pairs(Mapping[str, Optional[str]]):
    """A mapping of a class of its own."""

    def __init__(self, **content: Optional[str]) -> None:
        self._content = content

    def __getitem__(self, name: str) -> Optional[str]:
        return self._content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@pytest.mark.parametrize(
    "revision",
    [
        {NAME: "1", OTHER: ""},
        [(NAME, "1"), (OTHER, "")],
        ((NAME, "1"), [OTHER, ""]),
        {(NAME, "1"), (OTHER, "")},
        MappingProxyType({NAME: "1", OTHER: ""}),
        Pairs(**{NAME: "1", OTHER: ""}),
        {NAME: "1", OTHER: ""}.items(),
    ],
    ids=lambda revision: type(revision).__name__,
)
def test_env_from_mappings_and_pairs(method: str, revision: Any) -> None:
    js = Jobserver(method, 1).revise_env(revision)
    assert js(errands.environment, NAME, OTHER).result(PATIENCE) == ["1", ""]
    assert NAME not in os.environ


def test_env_from_an_iterator_is_read_at_once(method: str) -> None:
    pairs = iter([(NAME, "1"), (OTHER, "2")])
    js = Jobserver(method, 1).revise_env(pairs)
    assert next(pairs, None) is None
    for _ in range(2):
        assert js(errands.environment, NAME, OTHER).result(PATIENCE) == ["1", "2"]


def test_env_is_copied(method: str) -> None:
    revision: dict[str, Optional[str]] = {NAME: "1"}
    js = Jobserver(method, 1).revise_env(revision)
    revision[NAME] = "2"
    revision[OTHER] = "2"
    assert js(errands.environment, NAME, OTHER).result(PATIENCE) == ["1", None]


def test_env_is_merged_onto_earlier_revisions(method: str) -> None:
    js = Jobserver(method, 1).revise_env({NAME: "1", OTHER: "1"}).revise_env({NAME: "2"})
    assert js(errands.environment, NAME, OTHER).result(PATIENCE) == ["2", "1"]


def test_env_none_unsets(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "parent's")
    js = Jobserver(method, 1)
    unset = js.revise_env({NAME: None})
    assert unset(errands.environment, NAME).result(PATIENCE) == [None]
    assert unset.revise_env({NAME: "1"})(errands.environment, NAME).result(PATIENCE) == ["1"]
    assert os.environ[NAME] == "parent's"


def test_env_none_unsets_what_an_earlier_revision_set(method: str) -> None:
    js = Jobserver(method, 1).revise_env({NAME: "1"}).revise_env({NAME: None})
    assert js(errands.environment, NAME).result(PATIENCE) == [None]


def test_env_none_for_a_name_that_is_not_set_is_fine(method: str) -> None:
    js = Jobserver(method, 1).revise_env({NAME: None})
    assert js(errands.environment, NAME).result(PATIENCE) == [None]


def test_env_of_the_last_of_equal_pairs_holds(method: str) -> None:
    js = Jobserver(method, 1).revise_env([(NAME, "1"), (NAME, "2")])
    assert js(errands.environment, NAME).result(PATIENCE) == ["2"]


def test_env_beyond_ascii(method: str) -> None:
    name, value = "JOBSERVER_TEST_Ü", "gr\u00fc\u00df\udcff\n="  # a byte that is no UTF-8, too
    js = Jobserver(method, 1).revise_env({name: value})
    assert js(errands.environment, name).result(PATIENCE) == [value]


def test_env_reaches_what_the_worker_execs(method: str, tmp_path: Path) -> None:
    """`os.environ` is the process's real environment, not only the dictionary."""
    path = tmp_path / "env"
    js = Jobserver(method, 1).revise_env({NAME: "1"})
    command = f'echo "${NAME}" > "{path}"'
    assert js(os.system, command).result(PATIENCE) == 0
    assert path.read_text() == "1\n"


def test_env_is_applied_before_the_arguments_are_unpickled(method: str) -> None:
    if method == "fork":
        pytest.skip("fork carries the arguments unpickled")
    js = Jobserver(method, 1).revise_env({NAME: "1"})
    arrived = js(echo, errands.EnvironmentOnArrival(NAME), k=errands.EnvironmentOnArrival(OTHER))
    assert arrived.result(PATIENCE) == (("1",), {"k": "unset"})


def test_env_is_applied_before_preexec_is_unpickled_and_run(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "seen")
    js = Jobserver(method, 1)
    js = js.replace_preexec(errands.append_environment, path, NAME).revise_env({NAME: "1"})
    assert js(add, 1, 2).result(PATIENCE) == 3
    if method != "fork":
        on_arrival = errands.EnvironmentOnArrival(NAME)
        js = js.replace_preexec(errands.append, path, on_arrival)  # type: ignore[arg-type]
        assert js(add, 1, 2).result(PATIENCE) == 3
    assert set(lines(path)) == {"1"}


def test_env_of_one_submission_stays_there(method: str) -> None:
    js = Jobserver(method, 1)
    assert js.revise_env({NAME: "1"})(errands.environment, NAME).result(PATIENCE) == ["1"]
    assert js(errands.environment, NAME).result(PATIENCE) == [None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (1, "x"),
        (b"X", "x"),
        (None, "x"),
        (("X",), "x"),
        ("X", 1),
        ("X", b"x"),
        ("X", True),
        ("X", ["x"]),
        ("X", Path("x")),
        (1, None),
    ],
)
def test_env_of_what_is_not_str_is_refused_at_once(name: Any, value: Any) -> None:
    js = Jobserver("fork", 1)
    for revision in ({name: value}, [(name, value)], [("FINE", "x"), (name, value)]):
        with pytest.raises(TypeError, match="env") as caught:
            js.revise_env(revision)
        wrong = name if not isinstance(name, str) else value
        assert repr(wrong) in str(caught.value) or type(wrong).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"),
        ("", None),
        ("A=B", "x"),
        ("=A", "x"),
        ("A=", None),
        ("=", "x"),
        ("A\0B", "x"),
        ("A\0", None),
        ("A", "\0"),
        ("A", "x\0y"),
        ("A", "\ud800"),
        ("\ud800", "x"),
    ],
)
def test_env_of_what_no_environment_can_hold_is_refused_at_once(
    name: str, value: Optional[str]
) -> None:
    js = Jobserver("fork", 1)
    for revision in ({name: value}, [(name, value)], [("FINE", "x"), (name, value)]):
        with pytest.raises(ValueError):  # noqa: PT011 - the codec's own error has no word of ours
            js.revise_env(revision)


@pytest.mark.parametrize("revision", [None, 5, 1.5, "A=1", b"A=1", "", b"", object()])
def test_env_that_is_neither_mapping_nor_pairs_is_refused_at_once(revision: Any) -> None:
    js = Jobserver("fork", 1)
    with pytest.raises(TypeError, match="env must be a mapping or pairs") as caught:
        js.revise_env(revision)
    assert repr(revision) in str(caught.value)


def test_whoever_has_no_gate_admits() -> None:
    assert Settings().delay() is None


@pytest.mark.parametrize("revision", [[5], [("A",)], ["A"], [("A", "1", "2")]])
def test_env_of_what_is_no_pair_is_refused_at_once(revision: Any) -> None:
    js = Jobserver("fork", 1)
    with pytest.raises((TypeError, ValueError)):
        js.revise_env(revision)


def test_a_refused_revision_changes_nothing(method: str) -> None:
    js = Jobserver(method, 1).revise_env({NAME: "1"})
    with pytest.raises(ValueError, match="NUL"):
        js.revise_env([(NAME, "2"), (OTHER, "\0")])
    assert js(errands.environment, NAME, OTHER).result(PATIENCE) == ["1", None]


# replace_preexec


def test_preexec_runs_in_the_worker_just_before_the_work(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    js = Jobserver(method, 1).replace_preexec(errands.note_pid, path)
    worker = js(getpid).result(PATIENCE)
    assert worker != os.getpid()
    assert int(Path(path).read_text()) == worker


def test_preexec_of_none_and_its_arguments(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.append, path, text="preexec")
    assert not os.path.exists(path)
    assert js(errands.append, path, "work").result(PATIENCE) is None
    assert lines(path) == ["preexec", "work"]
    js(errands.append, path, "again").result(PATIENCE)
    assert lines(path) == ["preexec", "work", "preexec", "again"]


def test_preexec_changes_are_the_works(method: str, tmp_path: Path) -> None:
    js = Jobserver(method, 1).replace_preexec(os.chdir, str(tmp_path))
    assert js(os.getcwd).result(PATIENCE) == os.path.realpath(tmp_path)
    assert os.getcwd() != os.path.realpath(tmp_path)


class Recorder:
    """A callable that leaves its arguments where the work finds them."""

    def __call__(self, /, *args: object, **kwargs: object) -> None:
        os.environ[NAME] = repr((args, kwargs))


def test_preexec_keyword_names_are_its_own(method: str) -> None:
    js = Jobserver(method, 1).replace_preexec(Recorder(), 1, fn=2, self=3, args=4, kwargs=5)
    expected = repr(((1,), {"fn": 2, "self": 3, "args": 4, "kwargs": 5}))
    assert js(errands.environment, NAME).result(PATIENCE) == [expected]


def test_preexec_replaces_the_earlier_one(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.append, path, "first")
    js = js.replace_preexec(errands.append, path, "second")
    assert js(add, 1, 2).result(PATIENCE) == 3
    assert lines(path) == ["second"]


def test_preexec_context_manager_is_entered_around_the_work(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.keep_diary, path)
    assert js(errands.append, path, "work").result(PATIENCE) is None
    assert lines(path) == ["preexec", "enter", "work", "exit"]
    assert js(add, 1, 2).result(PATIENCE) == 3


def test_preexec_context_manager_of_a_generator(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.diary_of_a_generator, path)
    for number in range(2):
        assert js(add, number, 2).result(PATIENCE) == number + 2
    with pytest.raises(ValueError, match="why"):
        js(raise_value_error, "why").result(PATIENCE)
    assert lines(path) == ["enter", "exit"] * 3


def test_preexec_context_manager_sees_the_exception(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.keep_diary, path)
    with pytest.raises(ValueError, match="why"):
        js(raise_value_error, "why").result(PATIENCE)
    assert lines(path) == ["preexec", "enter", "exit ValueError"]


def test_preexec_that_swallows_turns_the_result_into_none(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.keep_diary, path, swallow=True)
    assert js(raise_value_error, "why").result(PATIENCE) is None
    assert js(add, 1, 2).result(PATIENCE) == 3
    assert lines(path) == ["preexec", "enter", "exit ValueError", "preexec", "enter", "exit"]


def test_preexec_may_swallow_an_exit(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.keep_diary, path, swallow=True)
    assert js(errands.exit_with, 3).result(PATIENCE) is None


@pytest.mark.parametrize(
    ("preexec", "text"),
    [
        (errands.raise_lookup_error, "from preexec"),
        (errands.FailsToEnter, "on entering"),
    ],
)
def test_an_exception_before_the_work_is_the_works(
    method: str, preexec: Callable[..., object], text: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(preexec, path)
    future = js(errands.append, path, "work")
    with pytest.raises(LookupError, match=text):
        future.result(PATIENCE)
    assert not os.path.exists(path)
    check_slots(Jobserver(method, 1), 1, tmp_path / "check")


def test_an_exception_on_leaving_is_the_works(method: str, tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver(method, 1).replace_preexec(errands.FailsToLeave, path)
    with pytest.raises(LookupError, match="on leaving"):
        js(errands.append, path, "work").result(PATIENCE)
    assert lines(path) == ["enter", "work"]
    with pytest.raises(LookupError, match="on leaving"):
        js(raise_value_error, "why").result(PATIENCE)


def test_an_exit_in_preexec_is_a_lost_result(method: str) -> None:
    js = Jobserver(method, 1).replace_preexec(errands.exit_with, 3)
    with pytest.raises(LostResult) as caught:
        js(add, 1, 2).result(PATIENCE)
    assert isinstance(caught.value.__cause__, SystemExit)


def test_preexec_that_returns_something_else_is_an_error(method: str) -> None:
    js = Jobserver(method, 1).replace_preexec(errands.not_a_context_manager)
    with pytest.raises(TypeError, match="context manager"):
        js(add, 1, 2).result(PATIENCE)


@pytest.mark.parametrize("preexec", [None, 1, "errands.append", ("a", "b"), object()])
def test_preexec_that_is_not_callable_is_refused(preexec: Any) -> None:
    js = Jobserver("fork", 1)
    with pytest.raises(TypeError, match="preexec") as caught:
        js.replace_preexec(preexec)
    assert repr(preexec) in str(caught.value) or type(preexec).__name__ in str(caught.value)


def test_preexec_may_be_a_closure_under_fork(tmp_path: Path) -> None:
    path = str(tmp_path / "diary")
    js = Jobserver("fork", 1).replace_preexec(lambda: errands.append(path, "preexec"))
    assert js(add, 1, 2).result(PATIENCE) == 3
    assert lines(path) == ["preexec"]


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_preexec_that_cannot_be_pickled_is_refused_at_submission(
    start: str, tmp_path: Path
) -> None:
    js = Jobserver(start, 1)
    with pytest.raises(TypeError, match=f"(?s)not picklable.*{start}|{start}.*not picklable"):
        js.replace_preexec(lambda: None).submit(add, args=(1, 2))
    check_slots(js, 1, tmp_path / "check")


# replace_sleep


def test_sleep_is_asked_here_before_each_acceptance(method: str) -> None:
    asked: list[int] = []
    js = Jobserver(method, 3).replace_sleep(lambda: asked.append(os.getpid()))
    assert not asked
    futures: list[Future[int]] = []
    for number in range(1, 4):
        futures.append(js.submit(add, args=(number, 1)))
        assert asked == [os.getpid()] * number
    assert [future.result(PATIENCE) for future in futures] == [2, 3, 4]
    assert len(asked) == 3


def test_sleep_gates_every_way_to_submit() -> None:
    asked: list[int] = []
    js = Jobserver("fork", 2).replace_sleep(lambda: asked.append(1))
    assert js(add, 1, 2).result(PATIENCE) == 3
    assert len(asked) == 1
    assert js.submit(add, args=(1, 2), consume=0).result(PATIENCE) == 3
    assert len(asked) == 2
    assert list(js.map(add, [(1, 2), (3, 4)])) == [3, 7]
    assert len(asked) == 4


def test_sleep_delays_by_what_it_answers(method: str) -> None:
    answers: list[Optional[float]] = [0.2, 0, 0.0, 0.1, None]
    times: list[float] = []

    def gate() -> Optional[float]:
        times.append(time.monotonic())
        return answers[len(times) - 1]

    js = Jobserver(method, 1).replace_sleep(gate)
    assert js.submit(add, args=(1, 2), timeout=SOON).result(PATIENCE) == 3
    assert len(times) == len(answers)
    assert times[1] - times[0] >= 0.2
    assert times[4] - times[3] >= 0.1
    assert times[4] - times[0] < SOON


def test_sleep_without_a_timeout_waits_as_long_as_it_takes() -> None:
    answers: list[Optional[float]] = [None, 1, 0.1, 0.1]
    began = time.monotonic()
    js = Jobserver("fork", 1).replace_sleep(answers.pop)
    assert js(add, 1, 2).result() == 3
    assert not answers
    assert time.monotonic() - began >= 1.2


def test_sleep_admits_with_timeout_0(method: str) -> None:
    js = Jobserver(method, 1).replace_sleep(none)
    assert js.submit(add, args=(1, 2), timeout=0).result(PATIENCE) == 3


@pytest.mark.parametrize("consume", [0, 1])
@pytest.mark.parametrize("timeout", [0, 0.3])
def test_sleep_never_overshoots_the_deadline(consume: int, timeout: float, tmp_path: Path) -> None:
    asked: list[int] = []

    def gate() -> float:
        asked.append(1)
        return 3600

    js = Jobserver("fork", 1)
    began, burnt = time.monotonic(), time.process_time()
    with pytest.raises(Blocked):
        js.replace_sleep(gate).submit(add, args=(1, 2), consume=consume, timeout=timeout)
    assert timeout <= time.monotonic() - began < SOON
    assert time.process_time() - burnt < 0.1
    assert asked
    check_slots(js, 1, tmp_path / "check")


def test_sleep_in_many_short_naps_keeps_the_deadline() -> None:
    js = Jobserver("fork", 1).replace_sleep(lambda: 0.01)
    began = time.monotonic()
    with pytest.raises(Blocked):
        js.submit(add, args=(1, 2), timeout=0.3)
    assert 0.3 <= time.monotonic() - began < SOON


@pytest.mark.parametrize(
    "answer",
    [True, False, -1, -0.001, float("nan"), float("-inf"), "1", "", b"", 1j, [], (), object()],
)
@pytest.mark.parametrize("consume", [0, 1])
def test_sleep_that_answers_anything_else_is_an_error(
    answer: Any, consume: int, tmp_path: Path
) -> None:
    js = Jobserver("fork", 1)
    assert js(add, 1, 2).result(PATIENCE) == 3  # what is opened once and kept is open by now
    before = sorted(os.listdir("/proc/self/fd"))
    mark = tmp_path / "mark"
    with pytest.raises(ValueError, match="sleep") as caught:
        js.replace_sleep(lambda: answer).submit(errands.write_pid, args=(mark,), consume=consume)
    assert repr(answer) in str(caught.value)
    assert sorted(os.listdir("/proc/self/fd")) == before
    check_slots(js, 1, tmp_path / "check")
    assert not mark.exists()


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("consume", [0, 1])
@pytest.mark.parametrize("asks", [1, 3])
def test_an_exception_from_sleep_propagates_and_costs_no_slot(
    method: str, error: type[BaseException], consume: int, asks: int, tmp_path: Path
) -> None:
    asked: list[int] = []

    def gate() -> float:
        asked.append(1)
        if len(asked) == asks:
            raise error("from sleep")
        return 0.001

    js = Jobserver(method, 1)
    mark = tmp_path / "mark"
    with pytest.raises(error, match="from sleep"):
        js.replace_sleep(gate).submit(errands.write_pid, args=(mark,), consume=consume)
    assert repr(js).startswith(f"Jobserver('{method}', tracked=0")
    if method == "fork":
        check_slots(js, 1, tmp_path / "check")
    assert js.submit(add, args=(1, 2), timeout=0).result(PATIENCE) == 3
    assert not mark.exists()


def test_sleep_is_no_way_around_the_slots(tmp_path: Path) -> None:
    js = Jobserver("fork", 1).replace_sleep(none)
    with Gate(tmp_path) as gate:
        future = js.submit(pass_gate, args=(gate.path,))
        with pytest.raises(Blocked):
            js.submit(add, args=(1, 2), timeout=0.1)
        gate.open()
        assert future.wait(PATIENCE)


def test_sleep_holds_no_slot_meanwhile(tmp_path: Path) -> None:
    """While the gate keeps one submission waiting, others get the slot."""
    js = Jobserver("fork", 1)
    answers: list[Optional[float]] = [None, 0.1]
    inner: list[int] = []

    def gate() -> Optional[float]:
        inner.append(js.submit(add, args=(1, len(inner)), timeout=0).result(PATIENCE))
        return answers.pop()

    assert js.replace_sleep(gate).submit(add, args=(5, 5)).result(PATIENCE) == 10
    assert inner == [1, 2]
    check_slots(js, 1, tmp_path / "check")


def test_finished_work_is_reclaimed_while_the_gate_sleeps(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    js = Jobserver("fork", 1)
    finished = js.submit(errands.write_pid, args=(mark,))
    await_file(mark)
    answers: list[Optional[float]] = [None, 0.1]
    gated = js.replace_sleep(answers.pop)
    assert gated.submit(add, args=(1, 2), timeout=PATIENCE).result(PATIENCE) == 3
    assert finished.done()


@pytest.mark.parametrize("sleep", [1, 0.5, True, "sleep", (), object()])
def test_sleep_that_is_not_callable_is_refused(sleep: Any) -> None:
    js = Jobserver("fork", 1)
    with pytest.raises(TypeError, match="sleep") as caught:
        js.replace_sleep(sleep)
    assert repr(sleep) in str(caught.value) or type(sleep).__name__ in str(caught.value)
