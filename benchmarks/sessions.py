"""Contestants from the driver's side: a process each, asked for one round at a time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import environments

Samples = dict[str, list[float]]
K = TypeVar("K")

PLAY = Path(__file__).with_name("contestants") / "play.py"
PATIENCE = 120.0  # seconds for one round; the longest takes a fifth of it


class NoAnswerError(Exception):
    """The contestant has ended, having said why on the standard error, or stands still."""


@dataclass(frozen=True)
class Plan:
    """A contestant that is still to be started: where it runs, and what is measured of it."""

    environment: str
    measure: str
    arguments: Mapping[str, object] = field(default_factory=dict)


class Session:
    """A contestant's process, from its first round to its last."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [
                str(environments.python(plan.environment)),
                str(PLAY),
                plan.measure,
                json.dumps(plan.arguments),
            ],
            env=environments.variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that its workers end with it
        )

    def await_ready(self) -> None:
        """Return once everything is made that is no part of a round."""
        self._line()

    def ask(self) -> None:
        """Start a round."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` reports it
            print(file=self._process.stdin, flush=True)

    def answer(self) -> Samples:
        """The samples of the round, once it is over."""
        samples: Samples = json.loads(self._line())
        return samples

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise NoAnswerError
        return line

    def close(self, *, patience: float = 30) -> None:
        """End the process, by force when it does not end at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()


def play(
    title: str, plans: Mapping[K, Plan], rounds: int, *, together: bool = False
) -> dict[K, list[Samples]]:
    """Interleave the rounds of all contestants, and end them; one that fails is left out.

    They take turns, a different one first each time, so that a drift of the machine hits all of
    them alike; or, when they do nothing but wait, all run a round `together`.
    """
    sessions: dict[K, Session] = {}
    played: dict[K, list[Samples]] = {}

    def leave_out(key: K) -> None:
        print(f"{title}: no answer from {key}", file=sys.stderr)
        sessions.pop(key).close(patience=0)
        played.pop(key, None)

    try:
        for key, plan in plans.items():
            if environments.why_missing(plan.environment) is None:
                sessions[key] = Session(plan)
        # Not while others are still starting: that would slow down whoever is the first to play.
        for key in list(sessions):
            try:
                sessions[key].await_ready()
                played[key] = []
            except NoAnswerError:
                leave_out(key)
        for number in range(rounds):
            print(f"{title}: round {number + 1} of {rounds}", file=sys.stderr)
            keys = list(sessions)
            if together:
                for key in keys:
                    sessions[key].ask()
            first = number % max(len(keys), 1)
            for key in keys[first:] + keys[:first]:
                if not together:
                    sessions[key].ask()
                try:
                    played[key].append(sessions[key].answer())
                except (NoAnswerError, ValueError):
                    leave_out(key)
    finally:
        for session in sessions.values():
            session.close()
    return played


def medians(rounds: list[Samples], name: str) -> list[float]:
    """The median of each round."""
    return [statistics.median(samples[name]) for samples in rounds]
