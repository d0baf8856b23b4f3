"""The rows of the table: which contestants play, with which measure, and what is promised.

To add a row, add a function and its name in `ROWS`. To add a contestant, add a context manager to
`contestants/` that yields a `rounds.Pool`, and a line in `FRESH` or `REUSED`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sessions import Plan, Samples, medians, play
from table import Bar, Cell, Row

METHODS = ("fork", "forkserver", "spawn")


@dataclass(frozen=True)
class Options:
    rounds: int = 9
    seconds: float = 10.0
    quick: bool = False
    methods: tuple[str, ...] = METHODS

    @property
    def available(self) -> list[str]:
        present = multiprocessing.get_all_start_methods()
        return [method for method in self.methods if method in present]

    def of(self, share: int) -> int:
        """So many rounds fewer, of what takes long."""
        return max(self.rounds // share, 1)


@dataclass(frozen=True)
class Contestant:
    """What makes a pool, or what a measure asks for in its place; where; under which methods."""

    name: str
    environment: str = "ours"
    methods: tuple[str, ...] = METHODS
    fresh: bool = False  # a process for each call: it is given fewer calls


JOBSERVER = "jobserver, reused"
EXECUTOR = "executor, reused"
PPE = "ProcessPoolExecutor"
POOL = "Pool"
NAMESAKE = "jobserver 3.0.1 of PyPI"

# With a process for each call. Those of pools are started ahead, while nobody measures.
FRESH = {
    "bare Process": Contestant("bare.process"),
    "jobserver, fresh": Contestant("with_jobserver.jobserver"),
    NAMESAKE: Contestant("with_jobserver.jobserver", "namesake"),
    "executor, fresh": Contestant("with_jobserver_executor.executor"),
    f"{NAMESAKE}, executor": Contestant("with_jobserver_executor.executor", "namesake"),
    "Pool, fresh": Contestant("with_stdlib.pool_fresh"),
    "ProcessPoolExecutor, fresh": Contestant(
        "with_stdlib.executor_fresh", methods=METHODS[1:] if sys.version_info >= (3, 11) else ()
    ),
    "pebble, fresh": Contestant("with_pebble.pool_fresh", "pebble"),
}

# As most programs would use them.
REUSED = {
    JOBSERVER: Contestant("with_jobserver.reused"),
    EXECUTOR: Contestant("with_jobserver_executor.executor_reused"),
    PPE: Contestant("with_stdlib.executor"),
    POOL: Contestant("with_stdlib.pool"),
    "loky": Contestant("with_loky.executor", "loky", ("spawn",)),
    "pebble": Contestant("with_pebble.pool", "pebble"),
    "mpire": Contestant("with_mpire.pool", "mpire"),
    "jobserver, fresh": Contestant("with_jobserver.jobserver", fresh=True),
    NAMESAKE: Contestant("with_jobserver.jobserver", "namesake", fresh=True),
}

TREES = {
    JOBSERVER: Contestant("with_jobserver.tree_reused"),
    "jobserver, fresh": Contestant("with_jobserver.tree"),
    # It stands still otherwise; see there.
    NAMESAKE: Contestant("with_jobserver.tree_beside_the_slots", "namesake"),
    PPE: Contestant("with_stdlib.tree"),
    "loky": Contestant("with_loky.tree", "loky", ("spawn",)),
}

# A round is some calls of each contestant: enough that the first one's cold caches do not count,
# few enough that all of them are through before the machine changes its mind.
FRESH_CALLS = {"fork": 20, "forkserver": 10, "spawn": 3}


@dataclass(frozen=True)
class Promise:
    """That one contestant takes at most so many times as long as another, or as is ideal."""

    whose: str
    limit: float
    methods: tuple[str, ...] = METHODS


def _by_method(
    options: Options,
    row: Row,
    contestants: Mapping[str, Contestant],
    plan: Callable[[Contestant, str], Plan],
    *,
    base: str | None,
    promise: Promise | None = None,
    rounds: int | None = None,
) -> Row:
    """Every contestant under every start method, against one of them."""
    for label in contestants:
        row.lines[label] = []
    for method in options.available:
        row.columns.append(method)
        plans = {
            label: plan(contestant, method)
            for label, contestant in contestants.items()
            if method in contestant.methods
        }
        played = play(f"{row.name}, {method}", plans, rounds or options.rounds)
        against = played.get(base) if base else None
        for label, cells in row.lines.items():
            cells.append(_cell(played.get(label), against, "call"))
        if promise is not None and method in promise.methods:
            cell = row.lines[promise.whose][-1]
            figure = None if cell is None else cell.ratio if base else cell.value
            if figure is not None:
                row.bars.append(Bar(method, figure, promise.limit))
    return row


def _cell(rounds: list[Samples] | None, base: list[Samples] | None, name: str) -> Cell | None:
    if not rounds:
        return None
    ours = medians(rounds, name)
    if not base:
        return Cell.of(ours)
    return Cell.of(ours, ours if rounds is base else medians(base, name))


def fresh(options: Options) -> Row:
    return _by_method(
        options,
        Row("fresh", "fresh worker, submit to result", "≤ 1.15x a bare Process", "s", []),
        FRESH,
        lambda who, method: Plan(
            who.environment,
            "measures.calls",
            {"contestant": who.name, "method": method, "count": FRESH_CALLS[method]},
        ),
        base="bare Process",
        promise=Promise("jobserver, fresh", 1.15),
    )


def fresh_beside(options: Options) -> Row:
    """In one and the same process: what one of them leaves in its memory is there for both."""
    title = "the same, ours and a bare Process in turn in one process"
    row = Row("fresh in turn", title, "≤ 1.15x a bare Process", "s", [])
    both = {label: FRESH[label].name for label in ("bare Process", "jobserver, fresh")}
    for label in both:
        row.lines[label] = []
    for method in options.available:
        row.columns.append(method)
        count = FRESH_CALLS[method]
        arguments = {"contestants": both, "method": method, "count": count}
        plan = Plan("ours", "measures.calls_in_turn", arguments)
        rounds = play(f"{row.name}, {method}", {"both": plan}, options.rounds).get("both")
        for label, cells in row.lines.items():
            base = medians(rounds, "bare Process") if rounds else None
            cells.append(Cell.of(medians(rounds, label), base) if rounds else None)
        cell = row.lines["jobserver, fresh"][-1]
        if cell is not None and cell.ratio is not None:
            row.bars.append(Bar(method, cell.ratio, 1.15))
    return row


def _calls(measure: str, count: int) -> Callable[[Contestant, str], Plan]:
    """A plan with so many calls; fewer where each has a process."""

    def plan(who: Contestant, method: str) -> Plan:
        number = FRESH_CALLS[method] if who.fresh else count
        arguments = {"contestant": who.name, "method": method, "count": number}
        return Plan(who.environment, f"measures.{measure}", arguments)

    return plan


def latency(options: Options) -> Row:
    return _by_method(
        options,
        Row("latency", "submit to result, one at a time", f"≤ 0.75x {PPE}", "s", []),
        REUSED,
        _calls("calls", 20 if options.quick else 200),
        base=PPE,
        promise=Promise(JOBSERVER, 0.75),
    )


def many(options: Options) -> Row:
    title = "many submissions, then results as they complete; each"
    return _by_method(
        options,
        Row("many", title, f"≤ 0.75x {PPE}", "s", []),
        REUSED,
        _calls("many", 50 if options.quick else 500),
        base=PPE,
        promise=Promise(EXECUTOR, 0.75),
    )


def mapped(options: Options) -> Row:
    return _by_method(
        options,
        Row("map", "map with chunksize 1, each call", f"≤ 0.6x {PPE}", "s", []),
        REUSED,
        _calls("mapped", 50 if options.quick else 500),
        base=PPE,
        promise=Promise(JOBSERVER, 0.6),
    )


def tiny(options: Options) -> Row:
    count = 1_000 if options.quick else 100_000
    contestants = {label: who for label, who in REUSED.items() if not who.fresh}
    return _by_method(
        options,
        Row("tiny", f'map over {count:,} tiny calls, ours with "auto"', f"≤ 1x {POOL}", "s", []),
        contestants,
        _calls("mapped_tiny", count),
        base=POOL,
        promise=Promise(EXECUTOR, 1.0),
    )


def _work(options: Options, name: str, milliseconds: float, count: int, limit: float) -> Row:
    def plan(who: Contestant, method: str) -> Plan:
        arguments = {"contestant": who.name, "method": method}
        seconds = milliseconds / 1000
        return Plan(
            who.environment, "measures.working", {**arguments, "count": count, "seconds": seconds}
        )

    title = f"{count:,} calls of {milliseconds:g} ms, against the ideal"
    contestants = {label: who for label, who in REUSED.items() if not who.fresh or milliseconds > 5}
    return _by_method(
        options,
        Row(name, title, f"≤ {limit:g}x", "x", []),
        contestants,
        plan,
        base=None,
        promise=Promise(JOBSERVER, limit),
        rounds=options.of(2),
    )


def work_1(options: Options) -> Row:
    return _work(options, "1 ms", 1, 200 if options.quick else 2_000, 1.07)


def work_20(options: Options) -> Row:
    return _work(options, "20 ms", 20, 10 if options.quick else 100, 1.07)


def _array(options: Options, name: str, measure: str, what: str) -> Row:
    size = (1 if options.quick else 64) << 20

    def plan(who: Contestant, method: str) -> Plan:
        arguments = {"contestant": who.name, "method": method, "size": size}
        return Plan(who.environment, f"measures.{measure}", arguments)

    return _by_method(
        options,
        Row(name, f"a NumPy array of {size >> 20} MiB as {what}", f"≤ 0.5x {PPE}", "s", []),
        REUSED,
        plan,
        base=PPE,
        promise=Promise(JOBSERVER, 0.5),
        rounds=options.of(2),
    )


def array_back(options: Options) -> Row:
    return _array(options, "array back", "array_back", "result")


def array_there(options: Options) -> Row:
    return _array(options, "array there", "array_there", "argument")


def cold(options: Options) -> Row:
    return _by_method(
        options,
        Row("cold", "construct, one result, close", f"fork: ≤ 1x {PPE}", "s", []),
        REUSED,
        lambda who, method: Plan(
            who.environment, "measures.cold", {"contestant": who.name, "method": method}
        ),
        base=PPE,
        promise=Promise(EXECUTOR, 1.0, ("fork",)),
    )


def tree(options: Options) -> Row:
    fans = [2, 2, 2] if options.quick else [5, 9, 10]
    jobs = fans[0] * (1 + fans[1] * (1 + fans[2]))
    return _by_method(
        options,
        Row("tree", f"a tree of {jobs} small jobs, three deep", f"≤ 0.1x {NAMESAKE}", "s", []),
        TREES,
        lambda who, method: Plan(
            who.environment, "measures.tree", {"grow": who.name, "method": method, "fans": fans}
        ),
        base=NAMESAKE,
        promise=Promise(JOBSERVER, 0.1),
        rounds=options.of(4),
    )


def footprint(options: Options) -> Row:
    """Both columns of each start method: the parent, and a worker."""
    row = Row("memory", "memory (PSS) of the parent, and of a worker", "for orientation", "KiB", [])
    for label in REUSED:
        row.lines[label] = []
    for method in options.available:
        row.columns.extend([f"{method}, parent", f"{method}, worker"])
        plans = {
            label: _calls("footprint", 100)(who, method)
            for label, who in REUSED.items()
            if method in who.methods
        }
        played = play(f"{row.name}, {method}", plans, 1)
        for label, cells in row.lines.items():
            cells += [_cell(played.get(label), None, name) for name in ("parent", "worker")]
    return row


FURTHER = 50  # submissions in a round; the first is told apart, as it may find work left for it

# The two called jobserver, and their environments.
OF_THE_NAME = {"jobserver": "ours", NAMESAKE: "namesake"}


def outstanding(options: Options) -> Row:
    """The same submission with few and with many Futures around it, against the few."""
    counts = (10, 100) if options.quick else (10, 100, 1000)
    title = "one more submission under fork, beside N finished ones that nobody has read"
    columns = [f"{count:,}" for count in counts]
    row = Row("outstanding", title, f"≤ 1.2x that beside {counts[0]}", "s", columns)
    for state in ("finished", "running"):
        plans = {
            (label, count): Plan(
                environment,
                "with_jobserver.outstanding",
                {"count": count, "further": FURTHER, "finished": state == "finished"},
            )
            for label, environment in OF_THE_NAME.items()
            for count in counts
        }
        if state == "running":
            for count in counts:
                arguments = {"count": count, "further": FURTHER}
                plans["bare Process", count] = Plan("ours", "bare.outstanding", arguments)
        played = play(f"{row.name}, {state}", plans, options.of(2))
        for label in dict.fromkeys(label for label, _ in plans):
            base = played.get((label, counts[0]))
            for name, case in (
                ("submit", "submit"),
                ("result", "to result"),
                ("first", "to result, the first"),
            ):
                row.lines[f"{label}, {state}: {case}"] = [
                    _cell(played.get((label, count)), base, name) for count in counts
                ]
    for count, cell in zip(counts[1:], row.lines["jobserver, finished: to result"][1:]):
        if cell is not None and cell.ratio is not None:
            row.bars.append(Bar(f"{count:,}", cell.ratio, 1.2))
    return row


def idle(options: Options) -> Row:
    """All at once: they are to do nothing, and each counts its own processor time."""
    title = f"processor time of a blocked submit and of a wait, over {options.seconds:g} s"
    cases = {"submit": "blocked_submit", "wait": "wait"}
    row = Row("idle", title, "≤ 1 % of a core", "%", list(cases))
    plans: dict[tuple[str, str], Plan] = {}
    for label, environment in OF_THE_NAME.items():
        for case, measure in cases.items():
            plans[label, case] = Plan(environment, f"idle.{measure}", {"seconds": options.seconds})
        for case, pending in (("submit", 10), ("wait", 0)):
            arguments = {"seconds": options.seconds, "pending": pending}
            plans[f"{label}, its executor", case] = Plan(
                environment, "idle.executor_wait", arguments
            )
    played = play(row.name, plans, 1, together=True)
    for label, case in plans:
        cell = _cell(played.get((label, case)), None, "percent")
        row.lines.setdefault(label, []).append(cell)
        if label == "jobserver" and cell is not None:
            row.bars.append(Bar(case, cell.value, 1.0, "%"))
    return row


def peak(options: Options) -> Row:
    """The parent's peak on the way through one long map."""
    marks = [100, 1_000] if options.quick else [100, 1_000, 10_000]
    title = f"peak memory of the parent in {marks[-1]:,} submissions through map(buffersize=8)"
    columns = [f"after {mark:,}" for mark in marks]
    row = Row("peak", title, "≤ 1.05x that after 100", "KiB", columns)
    plans = {
        label: Plan(environment, "memory.long_map", {"marks": marks})
        for label, environment in OF_THE_NAME.items()
    }
    played = play(row.name, plans, 1)
    for label in plans:
        rounds = played.get(label)
        base = medians(rounds, str(marks[0])) if rounds else None
        row.lines[label] = [
            Cell.of(medians(rounds, str(mark)), base) if rounds else None for mark in marks
        ]
    for column, cell in zip(columns[1:], row.lines["jobserver"][1:]):
        if cell is not None and cell.ratio is not None:
            row.bars.append(Bar(column, cell.ratio, 1.05))
    return row


def slots(options: Options) -> Row:
    """What the slots that survive SIGKILL cost, without the processes that run on them."""
    counts = (1, 8, 64)
    title = "take a slot and give it back, beside others that are held; an audit"
    bar = "≤ 15 µs on a fresh description, ≤ 6 µs on the one kept open"
    row = Row("slots", title, bar, "s", [f"{count} held" for count in counts])
    plans = {held: Plan("ours", "slots.steps", {"held": held}) for held in counts}
    played = play(row.name, plans, options.rounds)
    for label, name in (("kept open", "kept"), ("fresh", "fresh"), ("an audit", "audit")):
        row.lines[label] = [_cell(played.get(held), None, name) for held in counts]
    for label, limit in (("kept open", 6e-6), ("fresh", 15e-6)):
        found = [cell.value for cell in row.lines[label] if cell is not None]
        if found:
            row.bars.append(Bar(label, statistics.median(found), limit, "s"))
    return row


ROWS: dict[str, Callable[[Options], Row]] = {
    "latency": latency,
    "many": many,
    "map": mapped,
    "tiny": tiny,
    "1ms": work_1,
    "20ms": work_20,
    "array-back": array_back,
    "array-there": array_there,
    "fresh": fresh,
    "fresh-in-turn": fresh_beside,
    "cold": cold,
    "tree": tree,
    "memory": footprint,
    "outstanding": outstanding,
    "idle": idle,
    "peak": peak,
    "slots": slots,
}
