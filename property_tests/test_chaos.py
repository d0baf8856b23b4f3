"""A few seconds of `jobserver.testing chaos` over real processes; `./ci chaos` is the long run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobserver.testing import fuses, journal, oracle
from jobserver.testing.__main__ import main
from tests.work import PATIENCE

SECONDS = {"fork": 4, "spawn": 8, "forkserver": 8}
TOGETHER = 200.0  # seconds for the command and all that it waits for when something is wrong


@pytest.mark.thorough
def test_nothing_is_lost_but_results(method: str) -> None:
    arguments = ["--minutes", str(SECONDS[method] / 60), "--start-method", method, "--seed", "1"]
    process = subprocess.run(
        [sys.executable, "-m", "jobserver.testing", "chaos", *arguments],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TOGETHER,
        check=False,
    )
    print(process.stdout)
    assert process.returncode == 0
    last = process.stdout.splitlines()[-1]
    kills = re.search(r"(\d+) kills \((\d+) at .* (\d+) from outside", last)
    assert kills is not None
    assert all(int(number) for number in kills.groups())
    assert last.endswith("0 slots leaked, 0 oversubscriptions, 0 hangs, 0 unexpected exceptions")


def compute(path: str, started: Connection) -> None:
    with oracle.computing(path):
        started.send("computing")
        with oracle.waiting(path):
            started.send("waiting")
            started.recv()
        started.send("computing")
        signal.pause()


def test_the_oracle_counts_who_computes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = str(tmp_path / "oracle")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    count = oracle.Count()
    pipes = [context.Pipe() for _ in range(3)]
    processes = [context.Process(target=compute, args=(path, theirs)) for _, theirs in pipes]
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        for (ours, theirs), process in zip(pipes, processes):
            stack.callback(ours.close)
            stack.callback(theirs.close)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            assert [hear(ours), hear(ours)] == ["computing", "waiting"]
        count.look(fd, 2)
        assert count.most == 0
        for expected in range(1, 4):
            ours = pipes[expected - 1][0]
            ours.send("go on")
            assert hear(ours) == "computing"
            count.look(fd, 2)
            assert count.most == expected
            assert count.excesses == (1 if expected > 2 else 0)
        for process in processes:
            process.kill()
            process.join()
            count.look(fd, 2)
        assert not oracle.holders(fd)
        assert count.excesses == 1


def hear(connection: Connection) -> object:
    assert connection.poll(PATIENCE)
    return connection.recv()


def test_every_point_is_there() -> None:
    for module, name in fuses.FUNCTIONS:
        owner, attribute = fuses.find(module, name)
        assert callable(getattr(owner, attribute))


def test_notes_come_back_as_they_were(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    assert journal.read(path) == []
    journal.note(path, journal.LOST)
    journal.note(path, journal.UNEXPECTED, "Traceback:\n\té\\n\U0001f600")
    assert journal.read(path) == [
        (journal.LOST, ""),
        (journal.UNEXPECTED, "Traceback:\n\té\\n\U0001f600"),
    ]
    journal.forget(path)


def test_a_command_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "COMMAND" in capsys.readouterr().err
