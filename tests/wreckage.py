"""Trees of work whose members are killed, and a census of who computes, which survives them.

The census is an oracle of the tests' own: whoever computes holds a record lock on a file of its
own, which the kernel takes back from the dead, and gives to nobody whom they forked. Each counts
all others as it begins, so the most that ever computed at once is seen by the last to begin.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import Generator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Optional

from jobserver import Blocked, Future, Jobserver, JobserverExecutor, LostResult, forker, kernel
from tests.executor_help import await_true
from tests.processes import await_blocked, await_state, check_slots
from tests.trees import bound_this_process
from tests.work import PATIENCE, Gate, await_file, pass_gate, touch


class Census:
    """Who computes, by the locked files of a directory."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = str(directory)
        self.limit = limit
        directory.mkdir()

    @contextlib.contextmanager
    def computing(self) -> Generator[None, None, None]:
        path = f"{self.directory}/{os.getpid()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            number = 1 + self.count()
            if number > self.limit:
                touch(f"{self.directory}.{number}-computed")
            yield
        finally:
            os.close(fd)

    def count(self) -> int:
        """How many others compute now."""
        # A process loses its own lock by opening and closing the file.
        others = set(os.listdir(self.directory)) - {str(os.getpid())}
        return sum(_is_locked(f"{self.directory}/{name}") for name in others)

    def check(self) -> None:
        """Fail if there ever were too many."""
        directory = Path(self.directory)
        found = [path.name for path in directory.parent.glob(f"{directory.name}.*")]
        assert not found, f"{found}, where {self.limit} may"


def _is_locked(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def hold(census: Census, mark: str, gate: str, value: int = 0) -> int:
    """Compute until the gate opens."""
    bound_this_process()
    with census.computing():
        touch_with_pid(mark)
        pass_gate(gate)
    return value


def count(census: Census) -> int:
    bound_this_process()
    with census.computing():
        return 1


def hold_beside(js: Jobserver, census: Census, marks: list[str], gate: str) -> None:
    """Submit work that holds, one for each mark, on slots that are free; then hold."""
    bound_this_process()
    with census.computing():
        futures = [js.submit(hold, args=(census, mark, gate), timeout=0) for mark in marks[1:]]
        for mark in marks[1:]:
            await_file(mark)
        touch_with_pid(marks[0])
        pass_gate(gate)
    for future in futures:
        future.result()


def hold_below(
    js: Jobserver, census: Census, marks: list[str], gate: str, after: Optional[str] = None
) -> str:
    """Lend the own slot down a chain, one deeper for each mark; the last of them holds."""
    bound_this_process()
    here, *below = marks
    touch_with_pid(here)
    try:
        if len(below) == 1:
            js.submit(hold, args=(census, below[0], gate)).result()
        else:
            js.submit(hold_below, args=(js, census, below, gate)).result()
        said = "returned"
    except LostResult:
        said = "lost"
    with census.computing():
        if after is not None:
            touch(after)
    return said


def hold_below_by_executor(
    js: Jobserver, census: Census, marks: list[str], gate: str, after: Optional[str] = None
) -> str:
    """`hold_below` through executors, that lend the slot while somebody waits for their work."""
    bound_this_process()
    here, *below = marks
    touch_with_pid(here)
    with JobserverExecutor(js) as executor:
        try:
            if len(below) == 1:
                executor.submit(hold, census, below[0], gate).result()
            else:
                executor.submit(hold_below_by_executor, js, census, below, gate).result()
            said = "returned"
        except LostResult:
            said = "lost"
        with census.computing():
            if after is not None:
                touch(after)
    return said


def touch_with_pid(mark: str) -> None:
    Path(f"{mark}.tmp").write_text(str(os.getpid()))
    os.rename(f"{mark}.tmp", mark)


def pid_in(mark: str) -> int:
    """The process that touched the mark, once it has."""
    await_file(mark)
    return int(Path(mark).read_text())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def survive(js: Jobserver, census: Census, root: int, slots: int, directory: str) -> None:
    """Once the root is dead, submit to its slots as if nothing had happened."""
    bound_this_process()
    touch(f"{directory}/begun")
    await_state(root, "Z")
    futures = [js.submit(count, args=(census,)) for _ in range(10)]
    with census.computing():
        assert sum(future.result() for future in futures) == 10
    with Gate(Path(directory)) as gate:
        # What was the root's is free by now: all but the slot on which this runs.
        for number in range(slots - 1):
            mark = f"{directory}/{number}"
            futures.append(js.submit(hold, args=(census, mark, gate.path), timeout=PATIENCE))
            await_file(mark)
        try:
            js.submit(count, args=(census,), timeout=0)
        except Blocked:
            touch(f"{directory}/finished")
        gate.open()
        for future in futures:
            future.result()


def die_above_a_tree(method: str, directory: str, slots: int) -> None:
    """A program: the root of a tree, which is killed while the tree works."""
    js = Jobserver(method, slots)
    census = Census(Path(directory) / "census", slots)
    tree: Future[Any] = js.submit(survive, args=(js, census, os.getpid(), slots, directory))
    await_file(f"{directory}/begun")
    kept = [tree, *(js.submit(count, args=(census,)) for _ in range(slots - 1))]
    kill(os.getpid())
    del kept


def lose_the_forkserver(directory: str) -> None:
    """A program whose forkserver is killed while a worker runs."""
    js = Jobserver("forkserver", 1)
    census = Census(Path(directory) / "census", 1)
    with Gate(Path(directory)) as gate:
        mark = f"{directory}/mark"
        future = js.submit(hold, args=(census, mark, gate.path, 7))
        await_file(mark)
        server = _helper_pid()
        kill(server)
        await_state(server, "Z")
        refuse(js)
        gate.open()
        assert future.result(PATIENCE) == 7
    assert js.submit(count, args=(census,), timeout=PATIENCE).result(PATIENCE) == 1
    check_slots(js, 1, Path(directory) / "slots")
    census.check()


def submit_into_the_gap(directory: str) -> None:
    """A program whose forkserver is killed again and again, just before it is asked."""
    js = Jobserver("forkserver", 1)
    census = Census(Path(directory) / "census", 1)
    for _ in range(10):
        assert js.submit(count, args=(census,)).result(PATIENCE) == 1
        kill(_helper_pid())
        future = js.submit(count, args=(census,))
        with contextlib.suppress(LostResult):  # it had the work already
            assert future.result(PATIENCE) == 1
    check_slots(js, 1, Path(directory) / "slots")
    census.check()


def _helper_pid() -> int:
    pid: int = vars(forkserver)["_forkserver"]._forkserver_pid
    return pid


def refuse(js: Jobserver) -> None:
    """Fail unless there is no slot."""
    try:
        js.submit(hold, args=(), timeout=0)
    except Blocked:
        return
    raise AssertionError("there was a slot")


def lose_the_forker(directory: str) -> None:
    """A program whose executor's forker is killed while a worker runs."""
    js = Jobserver("fork", 2)
    census = Census(Path(directory) / "census", 2)
    forkers: list[int] = []
    fork = vars(forker)["_fork"]

    def fork_and_note(*args: object) -> int:
        forkers.append(fork(*args))
        return forkers[-1]

    setattr(forker, "_fork", fork_and_note)  # noqa: B010 - for this program
    with Gate(Path(directory)) as gate, JobserverExecutor(js) as executor:
        mark = f"{directory}/mark"
        future = executor.submit(hold, census, mark, gate.path, 7)
        await_file(mark)
        [pid] = forkers
        await_blocked(pid)  # it has told of the first worker, which may be the faster one
        os.kill(pid, signal.SIGSTOP)
        # It gets this one's work, and dies before it has told anything of it.
        lost = executor.submit(count, census)
        await_true(lost.running, "the work was never handed over")
        kill(pid)
        assert isinstance(lost.exception(PATIENCE), BrokenProcessPool)
        gate.open()
        assert future.result(PATIENCE) == 7
        # Told by the next future, or at once: by then it may be known.
        with contextlib.suppress(BrokenProcessPool):
            executor.submit(count, census).result(PATIENCE)
            raise AssertionError("a forker that was killed has forked")
    check_slots(js, 2, Path(directory) / "slots")
    census.check()


def recover_without_ofd_locks(method: str, directory: str) -> None:
    """A program on a platform that has flock(2), but no locks of open file descriptions."""
    setattr(kernel, "HAS_OFD", False)  # noqa: B010 - a constant, but for this program
    # Not below `directory`, which may be deep: a forkserver's socket is in there as well, and its
    # path can have no more than 107 bytes (unix(7)).
    private = tempfile.TemporaryDirectory()
    tempfile.tempdir = private.name
    slots = 3
    census = Census(Path(directory) / "census", slots)
    marks = [f"{directory}/mark{number}" for number in range(slots)]
    with Gate(Path(directory)) as gate, Jobserver(method, slots) as js:
        future = js.submit(hold_beside, args=(js, census, marks, gate.path))
        await_file(marks[0])
        assert future.wait(PATIENCE, signal=signal.SIGKILL)
        for mark in marks[1:]:
            # Its slot is free at once; the others are not before their holders end.
            assert js.submit(count, args=(census,), timeout=0).result(PATIENCE) == 1
            kill(pid_in(mark))
            await_state(pid_in(mark), "Z")
        check_slots(js, slots, Path(directory) / "slots")
        assert f"recovered={slots - 1}" in repr(js)
    census.check()
    assert not [name for name in os.listdir(private.name) if name.startswith("jobserver")]
    private.cleanup()
