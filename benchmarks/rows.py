"""The rows of the table: which contestants play, with which measure, and what the table says of it.

To add a row, add a function and its name in `ROWS`. To add a contestant to the latencies, add a
context manager to `contestants/` that yields the call to be timed, and a line in `FRESH` or
`REUSED`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from sessions import Samples, Session, medians, play

METHODS = ("fork", "forkserver", "spawn")

# The two called jobserver, and their environments.
OF_THE_NAME = {"jobserver": "ours", "namesake 3.0.1": "namesake"}


@dataclass(frozen=True)
class Options:
    rounds: int
    seconds: float
    quick: bool


@dataclass(frozen=True)
class Row:
    """A titled part of the table: a line of cells for each contestant or case."""

    title: str
    promise: str
    columns: list[str]
    lines: dict[str, list[str]]


@dataclass(frozen=True)
class Contestant:
    """A call to be timed, where it runs, and under which start methods."""

    call: str
    environment: str = "ours"
    methods: tuple[str, ...] = METHODS


FRESH = {
    "bare Process": Contestant("bare.process"),
    "jobserver": Contestant("with_jobserver.jobserver"),
    "namesake 3.0.1": Contestant("with_jobserver.jobserver", "namesake"),
    "JobserverExecutor": Contestant("with_jobserver_executor.executor"),
    "namesake's JobserverExecutor": Contestant("with_jobserver_executor.executor", "namesake"),
    "Pool, one task a child": Contestant("with_stdlib.pool_fresh"),
    "ProcessPoolExecutor, one task a child": Contestant(
        "with_stdlib.executor_fresh", methods=METHODS[1:] if sys.version_info >= (3, 11) else ()
    ),
    "pebble, one task a child": Contestant("with_pebble.pool_fresh"),
}

REUSED = {
    "ProcessPoolExecutor": Contestant("with_stdlib.executor"),
    "Pool": Contestant("with_stdlib.pool"),
    "pebble": Contestant("with_pebble.pool"),
    "loky": Contestant("with_loky.executor", methods=("spawn",)),
}

# A round is some calls of each contestant: enough that the first one's cold caches do not count,
# few enough that all of them are through before the machine changes its mind.
CALLS = {"fork": 20, "forkserver": 10, "spawn": 3}


def fresh(options: Options) -> Row:
    title = "fresh worker, submit to result"
    return _latency(title, "at most 1.15x a bare Process", FRESH, options)


def reused(options: Options) -> Row:
    return _latency("reused worker, submit to result", "for orientation", REUSED, options)


def _latency(title: str, promise: str, contestants: dict[str, Contestant], options: Options) -> Row:
    """Every contestant under every start method, against the first of them."""
    columns = [name for name in METHODS if name in multiprocessing.get_all_start_methods()]
    lines: dict[str, list[str]] = {label: [] for label in contestants}
    base = next(iter(contestants))
    for method in columns:
        sessions = {
            label: Session(
                contestant.environment,
                "latency.calls",
                contestant=contestant.call,
                method=method,
                count=CALLS[method],
            )
            for label, contestant in contestants.items()
            if method in contestant.methods
        }
        played = play(f"{title}, {method}", sessions, options.rounds)
        for label in contestants:
            cell = _ratio(played.get(label), played.get(base), "call")
            lines[label].append(cell if label in sessions else "")
    return Row(title, promise, columns, lines)


FURTHER = 6  # submissions in a round; the first is told apart, as it may find work left for it


def outstanding(options: Options) -> Row:
    """The same submission with few and with many Futures around it, against the few."""
    title = "one more submission beside N unread, fork"
    counts = (10, 100) if options.quick else (10, 100, 1000)
    lines: dict[str, list[str]] = {}
    for state in ("finished", "running"):
        sessions = {
            (label, count): Session(
                environment,
                "with_jobserver.outstanding",
                count=count,
                further=FURTHER,
                finished=state == "finished",
            )
            for label, environment in OF_THE_NAME.items()
            for count in counts
        }
        if state == "running":
            for count in counts:
                sessions["bare Process", count] = Session(
                    "ours", "bare.outstanding", count=count, further=FURTHER
                )
        played = play(f"{title}, {state}", sessions, max(options.rounds // 2, 1))
        for label in dict.fromkeys(label for label, _ in sessions):
            base = played.get((label, counts[0]))
            for name, case in (
                ("submit", "submit"),
                ("result", "to result"),
                ("first", "to result, the first"),
            ):
                lines[f"{label}, {state}: {case}"] = [
                    _ratio(played.get((label, count)), base, name) for count in counts
                ]
    return Row(title, "at most 1.2x that beside 10", [f"{count:,}" for count in counts], lines)


def idle(options: Options) -> Row:
    """All at once: they are to do nothing, and each counts its own processor time."""
    title = f"processor time over {options.seconds:g} s"
    sessions: dict[tuple[str, str], Session] = {}
    for label, environment in OF_THE_NAME.items():
        for case, measure in (("submit", "blocked_submit"), ("wait", "wait")):
            sessions[label, case] = Session(environment, f"idle.{measure}", seconds=options.seconds)
        for case, pending in (("submit", 10), ("wait", 0)):
            sessions[f"{label}, its executor", case] = Session(
                environment, "idle.executor_wait", seconds=options.seconds, pending=pending
            )
    played = play(title, sessions, 1, together=True)
    lines: dict[str, list[str]] = {}
    for key in sessions:
        rounds = played.get(key)
        cell = f"{rounds[0]['percent'][0]:.3f} % of a core" if rounds else "failed"
        lines.setdefault(key[0], []).append(cell)
    return Row(title, "under 1 %", ["submit without a slot", "wait"], lines)


def memory(options: Options) -> Row:
    """The parent's peak on the way through one long map."""
    title = "peak memory in map(buffersize=8)"
    marks = [100, 1_000] if options.quick else [100, 1_000, 10_000]
    sessions = {
        label: Session(environment, "memory.long_map", marks=marks)
        for label, environment in OF_THE_NAME.items()
    }
    played = play(title, sessions, 1)
    lines: dict[str, list[str]] = {}
    for label in sessions:
        rounds = played.get(label)
        if not rounds:
            lines[label] = ["failed"] * len(marks)
            continue
        peaks = [rounds[0][str(mark)][0] for mark in marks]
        lines[label] = [f"{peak / 1024:.1f} MiB {peak / peaks[0]:.3f}x" for peak in peaks]
    return Row(title, "flat", [f"after {mark:,}" for mark in marks], lines)


def slots(options: Options) -> Row:
    """What the slots that survive SIGKILL cost, without the processes that run on them."""
    title = "take a slot and give it back; look for lost ones"
    counts = (1, 8, 64)
    sessions = {held: Session("ours", "slots.steps", held=held) for held in counts}
    played = play(title, sessions, options.rounds)
    lines: dict[str, list[str]] = {}
    for label, name in (
        ("on the description kept open", "kept"),
        ("on a fresh description", "fresh"),
        ("an audit", "audit"),
    ):
        for held in counts:
            rounds = played.get(held)
            cell = f"{statistics.median(medians(rounds, name)):.1f} us" if rounds else "failed"
            lines.setdefault(label, []).append(cell)
    columns = [f"{held} held" for held in counts]
    return Row(title, "at most 15 us on a fresh description, 6 us on one kept", columns, lines)


def _ratio(rounds: list[Samples] | None, base: list[Samples] | None, name: str) -> str:
    """The median, and how many times the base it is: the median and quartiles over the rounds."""
    if not rounds:
        return "failed"
    ours = medians(rounds, name)
    text = f"{1000 * statistics.median(ours):.3f} ms"
    if base:
        ratios = [mine / theirs for mine, theirs in zip(ours, medians(base, name))]
        text += f" {statistics.median(ratios):.2f}x"
        if len(ratios) > 1 and rounds is not base:
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
            text += f" ({low:.2f}-{high:.2f})"
    return text


ROWS: dict[str, Callable[[Options], Row]] = {
    "fresh": fresh,
    "reused": reused,
    "outstanding": outstanding,
    "idle": idle,
    "memory": memory,
    "slots": slots,
}
