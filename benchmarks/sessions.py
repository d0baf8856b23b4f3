"""Contestants from the driver's side: a process each, asked for one round at a time."""

from __future__ import annotations

import contextlib
import json
import select
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import environments

Samples = dict[str, list[float]]
K = TypeVar("K")

PLAY = Path(__file__).with_name("contestants") / "play.py"
PATIENCE = 300.0  # seconds for one round; the longest takes a tenth of it


class NoAnswerError(Exception):
    """The contestant has ended, having said why on the standard error, or stands still."""


class Session:
    """A contestant's process, from its first round to its last."""

    def __init__(self, environment: str, measure: str, **arguments: object) -> None:
        self._process = subprocess.Popen(
            [str(environments.python(environment)), str(PLAY), measure, json.dumps(arguments)],
            env=environments.variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self) -> None:
        """Start a round."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` reports it
            print(file=self._process.stdin, flush=True)

    def answer(self) -> Samples:
        """The samples of the round, once it is over."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise NoAnswerError
        samples: Samples = json.loads(line)
        return samples

    def close(self) -> None:
        """End the process, by force when it does not end at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def play(
    title: str, sessions: Mapping[K, Session], rounds: int, together: bool = False
) -> dict[K, list[Samples]]:
    """Interleave the rounds of all sessions, then close them; one that fails is left out.

    They take turns, a different one first each time, so that a drift of the machine hits all of
    them alike; or, when they do nothing but wait, all run a round `together`.
    """
    played: dict[K, list[Samples]] = {key: [] for key in sessions}
    try:
        for number in range(rounds):
            print(f"{title}: round {number + 1} of {rounds}", file=sys.stderr)
            keys = list(played)
            if together:
                for key in keys:
                    sessions[key].ask()
            first = number % max(len(keys), 1)
            for key in keys[first:] + keys[:first]:
                if not together:
                    sessions[key].ask()
                try:
                    played[key].append(sessions[key].answer())
                except NoAnswerError:
                    print(f"{title}: no answer from {key}", file=sys.stderr)
                    del played[key]
    finally:
        for session in sessions.values():
            session.close()
    return played


def medians(rounds: list[Samples], name: str) -> list[float]:
    """The median of each round."""
    return [statistics.median(samples[name]) for samples in rounds]
