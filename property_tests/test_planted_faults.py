"""Tests of the tests: faults planted in the library, each of which a tier finds.

A fault is a small patch of the code in memory. The machines run over it with the examples that they
have in the profile `quick`, until one fails; the table at the end of a run says which, and in which
rule. A fault that nobody finds is a hole in the machines.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any, Callable

import attrs
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from property_tests.conftest import found
from property_tests.test_executor import STEPS
from property_tests.test_executor import TIMES as EXAMPLES
from property_tests.test_library import TIMES
from property_tests.test_slot_sources import over_the_pool

pytestmark = pytest.mark.thorough

FAULTS: dict[str, Callable[[Site], None]] = {}
POOL_FAULTS: dict[str, Callable[[Site], None]] = {}  # which tier 1 finds in the slots alone
TREE_FAULTS: dict[str, Callable[[Site], None]] = {}  # which tier 3 finds
EXECUTOR_FAULTS: dict[str, Callable[[Site], None]] = {}  # which tier 4 finds

PATIENCE = 3.0  # seconds: a fault that has something hang is found then


class Site:
    """Where a fault is planted: the subject's rooms, until the test is over."""

    def __init__(self, subject: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self._subject = subject
        self._monkeypatch = monkeypatch

    def __getattr__(self, room: str) -> Any:
        return importlib.import_module(f"{self._subject.__name__}.{room}")

    def put(self, owner: Any, name: str, value: object) -> None:
        self._monkeypatch.setattr(owner, name, value)

    def around(self, owner: Any, name: str, wrapper: Callable[..., object]) -> None:
        """Have `wrapper(original, *args)` called in the place of a function."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: object, **kwargs: object) -> object:
            return wrapper(original, *args, **kwargs)

        self.put(owner, name, wrapped)

    def row(self, state: str, event: str, new: str, *effects: str) -> None:
        """Change one entry of the lifecycle's table."""
        room = self.lifecycle
        transition = room.Transition(room.State[new], tuple(room.Effect[name] for name in effects))
        self._monkeypatch.setitem(room.TABLE[room.State[state]], room.Event[event], transition)


def fault(plant: Callable[[Site], None]) -> Callable[[Site], None]:
    FAULTS[plant.__name__.replace("_", " ")] = plant
    return plant


def pool_fault(plant: Callable[[Site], None]) -> Callable[[Site], None]:
    POOL_FAULTS[plant.__name__.replace("_", " ")] = plant
    return plant


def tree_fault(plant: Callable[[Site], None]) -> Callable[[Site], None]:
    TREE_FAULTS[plant.__name__.replace("_", " ")] = plant
    return plant


def executor_fault(plant: Callable[[Site], None]) -> Callable[[Site], None]:
    EXECUTOR_FAULTS[plant.__name__.replace("_", " ")] = plant
    return plant


# The table.


@fault
def slot_back_before_the_reap_in_the_table(site: Site) -> None:
    site.row("RUNNING", "CLOSED", "SETTLED", "CLOSE_CHANNEL", "RETURN_SLOT", "REAP")


@fault
def settled_twice(site: Site) -> None:
    site.row("SETTLED", "DELIVERED", "SETTLED", "CLOSE_CHANNEL", "REAP")


@fault
def worker_left_open_in_the_table(site: Site) -> None:
    site.row("SETTLED", "EXITED", "REAPED", "RETURN_SLOT")


@fault
def callbacks_announced_before_the_slot_is_back(site: Site) -> None:
    site.row("SETTLED", "EXITED", "REAPED", "CLOSE_WORKER", "ANNOUNCE", "RETURN_SLOT")


@fault
def signal_to_a_worker_that_is_gone_in_the_table(site: Site) -> None:
    site.row("DONE", "SIGNAL", "DONE", "KILL")


# Slots.


@fault
def slot_back_before_the_reap(site: Site) -> None:
    def reap(original: Any, run: Any, poller: object) -> None:
        if run.slot is not None:
            run._slots.give_back(run.slot)
            run.slot = None
        original(run, poller)

    site.around(site.run.Run, "_reap", reap)


@fault
def slot_back_twice(site: Site) -> None:
    def apply(original: Any, run: Any, event: Any, poller: object) -> None:
        slot = run.slot
        original(run, event, poller)
        if event is site.lifecycle.Event.EXITED and slot is not None:
            run._slots.give_back(slot)

    site.around(site.run.Run, "_apply", apply)


@fault
def slot_never_back(site: Site) -> None:
    def apply(original: Any, run: Any, event: Any, poller: object) -> None:
        if event is site.lifecycle.Event.CLOSED:
            run.slot = None
        original(run, event, poller)

    site.around(site.run.Run, "_apply", apply)


@fault
def token_lost_when_pickling_fails(site: Site) -> None:
    def launch(original: Any, resources: Any, *args: object) -> object:
        try:
            return original(resources, *args)
        except TypeError:
            resources.engine.slots.take()
            raise

    site.around(site.resources.Resources, "launch", launch)


@fault
def token_lost_when_a_submission_is_interrupted(site: Site) -> None:
    def put_back(original: Any, resources: object, held: list[object]) -> None:
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            held.clear()
        original(resources, held)

    site.around(site.resources.Resources, "put_back", put_back)


@fault
def blocked_although_a_slot_was_free(site: Site) -> None:
    def acquire(original: Any, resources: Any, held: object, deadline: Any) -> None:
        if deadline is not None and resources.engine.clock() >= deadline:
            raise site.errors.Blocked
        original(resources, held, deadline)

    site.around(site.resources.Resources, "_acquire", acquire)


@fault
def no_slot_for_work_that_consumes_one(site: Site) -> None:
    def launch(original: Any, resources: Any, *args: Any) -> object:
        *others, slot = args
        if slot is not None and resources.group.tracked:
            resources.engine.slots.give_back(slot)
            slot = None
        return original(resources, *others, slot)

    site.around(site.resources.Resources, "launch", launch)


@fault
def lent_slot_kept_when_it_is_relieved(site: Site) -> None:
    def until_relieved(original: Any, resources: Any, run: Any) -> None:
        slots = resources.engine.slots
        original(resources, run)
        if run.slot is not None and not slots.is_lent(run.slot):
            slots.lend()

    site.around(site.resources.Resources, "_until_relieved", until_relieved)


@fault
def a_full_tree_stands_still(site: Site) -> None:
    def acquire(original: Any, resources: Any, held: object, deadline: object) -> None:
        far = resources.engine.clock() + 1e9 if deadline is None else deadline
        original(resources, held, far)

    site.around(site.resources.Resources, "_acquire", acquire)


# Callbacks.


@fault
def callback_run_twice(site: Site) -> None:
    def issue_one(original: Any, run: Any) -> None:
        run.callbacks[0]()
        original(run)

    site.around(site.callbacks, "_issue_one", issue_one)


@fault
def callbacks_out_of_order(site: Site) -> None:
    def register(original: Any, run: Any, callback: object) -> object:
        answer = original(run, callback)
        run.callbacks.rotate()
        return answer

    site.around(site.run.Run, "register", register)


@fault
def callback_before_the_slot_is_back(site: Site) -> None:
    def apply(original: Any, run: Any, event: Any, poller: object) -> None:
        if event is site.lifecycle.Event.EXITED:
            while run.callbacks:
                run.callbacks.popleft()()
        original(run, event, poller)

    site.around(site.run.Run, "_apply", apply)


@fault
def callback_raised_is_nested(site: Site) -> None:
    def issue_one(_: object, run: Any) -> None:
        callback = run.callbacks.popleft()
        try:
            callback()
        except Exception as error:
            raise site.errors.CallbackRaised(callback.seqno) from error

    site.around(site.callbacks, "_issue_one", issue_one)


@fault
def the_rest_dropped_after_a_callback_raised(site: Site) -> None:
    def issue_one(original: Any, run: Any) -> None:
        try:
            original(run)
        except site.errors.CallbackRaised:
            run.callbacks.clear()
            raise

    site.around(site.callbacks, "_issue_one", issue_one)


@fault
def interrupt_in_a_callback_swallowed(site: Site) -> None:
    def issue_one(original: Any, run: Any) -> None:
        try:
            original(run)
        except KeyboardInterrupt:
            pass

    site.around(site.callbacks, "_issue_one", issue_one)


@fault
def reclaiming_runs_no_callbacks(site: Site) -> None:
    def reclaim(_: object, resources: Any) -> None:
        resources.engine.advance()

    site.around(site.resources.Resources, "reclaim", reclaim)


# Endings.


@fault
def eof_taken_for_success(site: Site) -> None:
    def outcome(original: Any, run: Any) -> object:
        return (lambda: None) if run.frame is None else original(run)

    site.around(site.future, "outcome_of", outcome)


@fault
def loss_reported_to_the_wrong_future(site: Site) -> None:
    def apply(original: Any, run: Any, event: Any, poller: object) -> None:
        running = [
            other
            for other in run.group.tracked
            if other is not run and other.state is site.lifecycle.State.RUNNING
        ]
        closed = event is site.lifecycle.Event.CLOSED
        original(running[0] if closed and running else run, event, poller)

    site.around(site.run.Run, "_apply", apply)


@fault
def exit_status_forgotten(site: Site) -> None:
    def outcome(original: Any, run: Any) -> object:
        run.worker.exitcode = None
        return original(run)

    site.around(site.future, "outcome_of", outcome)


@fault
def work_launched_twice(site: Site) -> None:
    def launch(original: Any, resources: Any, launcher: Any, group: object, *args: Any) -> object:
        if args[-1] is None:
            original(resources, launcher, group, *args)
        return original(resources, launcher, group, *args)

    site.around(site.resources.Resources, "launch", launch)


@fault
def signal_to_a_worker_that_is_gone(site: Site) -> None:
    def send_signal(_: object, run: Any, signum: int) -> None:
        run.worker.send_signal(signum)

    site.around(site.run.Run, "send_signal", send_signal)


@fault
def a_channel_left_open_when_the_launch_fails(site: Site) -> None:
    def launch(original: Any, resources: Any, *args: object) -> object:
        try:
            return original(resources, *args)
        except OSError:
            resources.crew._make_channel()
            raise

    site.around(site.resources.Resources, "launch", launch)


@fault
def dropped_while_running_without_a_warning(site: Site) -> None:
    site.put(site.future.Future, "__del__", lambda _: None)


# Workers that serve.


@fault
def work_sent_to_a_worker_that_has_some(site: Site) -> None:
    def assign(original: Any, turn: Any, **options: Any) -> None:
        original(turn, **options)
        turn._request.send(turn.member.requests)

    site.around(site.crew.Turn, "assign", assign)


@fault
def begun_work_is_given_to_another(site: Site) -> None:
    site.put(site.crew._Member, "has_begun", lambda _: False)


@fault
def unbegun_work_is_lost(site: Site) -> None:
    site.put(site.crew.Turn, "is_unbegun", lambda _: False)


@fault
def work_is_given_to_others_without_end(site: Site) -> None:
    def repeat(original: Any, turn: Any) -> None:
        original(turn)
        turn._may_be_repeated = True

    site.around(site.crew.Turn, "repeat", repeat)


@fault
def work_given_to_an_idle_worker_that_may_be_leaving(site: Site) -> None:
    site.around(site.crew.Turn, "assign", lambda original, turn, **_: original(turn))


@fault
def a_signalled_worker_is_used_again(site: Site) -> None:
    def poll(original: Any, turn: Any) -> object:
        signals, turn._signals = turn._signals, []
        try:
            return original(turn)
        finally:
            turn._signals = signals

    site.around(site.crew.Turn, "poll", poll)


@fault
def cancelled_work_is_given_to_another(site: Site) -> None:
    def send_signal(_: object, turn: Any, signum: int) -> None:
        turn.member.worker.send_signal(signum)

    site.around(site.crew.Turn, "send_signal", send_signal)


@fault
def a_worn_worker_is_kept(site: Site) -> None:
    def poll(original: Any, turn: Any) -> object:
        turn._reuse = attrs.evolve(turn._reuse, max_tasks=None)
        return original(turn)

    site.around(site.crew.Turn, "poll", poll)


@fault
def a_worker_is_used_that_has_served_too_often(site: Site) -> None:
    def find(original: Any, crew: Any, reuse: Any, slot: object) -> object:
        return original(crew, attrs.evolve(reuse, max_tasks=None), slot)

    site.around(site.crew.Crew, "find", find)


@fault
def an_idle_worker_holds_its_slot(site: Site) -> None:
    def release(original: Any, crew: Any, member: Any) -> None:
        original(crew, member)
        if crew.engine.slots.take() is None:
            member.slot = None

    site.around(site.crew.Crew, "release", release)


@fault
def a_receipt_is_not_handed_over(site: Site) -> None:
    def hand_over(_: object, slots: Any, slot: object, receipt: int) -> None:
        pass

    site.around(site.resources.SlotPool, "hand_over", hand_over)
    doubles = importlib.import_module(f"{site.crew.__package__}.testing.doubles")
    site.around(doubles.VirtualSlots, "hand_over", hand_over)


@fault
def an_answer_goes_to_the_future_before(site: Site) -> None:
    answers: list[Any] = []

    def engage(original: Any, crew: Any, *args: object) -> object:
        turn, answer = original(crew, *args)
        if answers and not answers[-1]._turn.answered:
            answer._turn, answers[-1]._turn = answers[-1]._turn, answer._turn
        answers.append(answer)
        return turn, answer

    site.around(site.crew.Crew, "engage", engage)


@fault
def the_death_of_an_idle_worker_goes_unseen(site: Site) -> None:
    site.put(site.crew._Member, "advance", lambda _: None)


# Time.


@fault
def deadline_ignored(site: Site) -> None:
    site.put(site.engine.Engine, "deadline", lambda *_: None)


@fault
def deadline_overshot_by_the_gate(site: Site) -> None:
    def sleep(original: Any, resources: object, delay: float, _: object) -> None:
        original(resources, delay, None)

    site.around(site.resources.Resources, "_sleep", sleep)


@fault
def what_comes_at_the_deadline_is_late(site: Site) -> None:
    def wait(original: Any, engine: Any, ready: Any, deadline: Any, **options: Any) -> bool:
        there: bool = original(engine, ready, deadline, **options)
        return there and (deadline is None or engine.clock() < deadline or deadline == 0)

    site.around(site.engine.Engine, "wait", wait)


@fault
def a_wait_moves_only_what_it_waits_for(site: Site) -> None:
    def take_in(original: Any, engine: object, subjects: Any) -> object:
        return original(engine, list(subjects)[:1])

    site.around(site.engine.Engine, "_take_in", take_in)


# Gates, handles and scopes.


@fault
def gate_not_asked_for_work_without_a_slot(site: Site) -> None:
    def submit(original: Any, resources: Any, given: Any, *rest: Any) -> object:
        _, consume, _ = rest
        if not consume:
            given = attrs.evolve(given, sleep=None)
        return original(resources, given, *rest)

    site.around(site.resources.Resources, "submit", submit)


@fault
def gate_asked_while_holding_the_slot(site: Site) -> None:
    def put_back(original: Any, resources: object, held: object) -> None:
        within = sys._getframe(2).f_code.co_name
        if within != "_admit" or sys.exc_info()[1] is not None:
            original(resources, held)

    site.around(site.resources.Resources, "put_back", put_back)


@fault
def gate_asked_once_only(site: Site) -> None:
    def delay(original: Any, given: Any) -> object:
        answer = original(given)
        return None if answer == 0 else answer

    site.around(site.settings.Settings, "delay", delay)


@fault
def handle_mutated_by_replace(site: Site) -> None:
    def with_(original: Any, jobserver: Any, changed: object) -> object:
        object.__setattr__(jobserver, "_settings", changed)
        return original(jobserver, changed)

    site.around(site.server.Jobserver, "_with", with_)


@fault
def env_not_merged(site: Site) -> None:
    def revise_env(original: Any, given: Any, revision: object) -> object:
        return original(attrs.evolve(given, env=()), revision)

    site.around(site.settings.Settings, "revise_env", revise_env)


@fault
def exit_of_an_inner_scope_closes_the_outer(site: Site) -> None:
    def leave(original: Any, resources: Any) -> None:
        resources._entries = 1
        original(resources)

    site.around(site.resources.Resources, "exit", leave)


@fault
def usable_when_closed(site: Site) -> None:
    site.put(site.resources.Resources, "check_open", lambda _: None)


# Maps.


@fault
def abandoned_map_keeps_slots(site: Site) -> None:
    site.put(site.mapping.Results, "__del__", lambda _: None)


@fault
def map_out_of_order(site: Site) -> None:
    def submitted(original: Any, results: Any, source: object) -> None:
        original(results, source)
        results._outstanding.rotate()

    site.around(site.mapping.Results, "_submitted", submitted)


@fault
def map_submits_beyond_its_buffer(site: Site) -> None:
    def wants_more(original: Any, results: Any) -> object:
        results._buffersize = None
        return original(results)

    site.around(site.mapping.Results, "_wants_more", wants_more)


@fault
def map_without_an_end_to_its_time(site: Site) -> None:
    def make(original: Any, results: Any, *args: Any, **kwargs: Any) -> None:
        original(results, *args, **kwargs)
        results._deadline = None

    site.around(site.mapping.Results, "__init__", make)


# Slots for commands.


@pool_fault
def bytes_are_restored_that_a_command_has(site: Site) -> None:
    def find(original: Any, kernel: object, start: int, stop: int) -> object:
        return None if start == site.slots.PRESENCE else original(kernel, start, stop)

    site.around(site.kernel.OfdKernel, "find", find)


@pool_fault
def bytes_stay_lost_that_a_killed_command_had(site: Site) -> None:
    def withdraw(_: object, pool: Any, grant: Any) -> None:
        site.forks.close(grant.read)
        site.forks.close(grant.write)
        pool.kernel.close(grant.presence)

    site.around(site.slots.SlotPool, "withdraw", withdraw)


# Processes.


@tree_fault
def a_forked_child_keeps_the_channels_of_its_siblings(site: Site) -> None:
    site.put(site.forks, "private", lambda fd: fd)


@tree_fault
def an_answer_before_what_the_work_has_submitted_is_over(site: Site) -> None:
    site.put(site.serving, "drain", None)


# The executor.


@executor_fault
def cancelled_work_stays_pending(site: Site) -> None:
    site.put(site.dispatch.Dispatch, "prune", lambda *_: None)


@executor_fault
def running_work_says_that_it_is_cancelled(site: Site) -> None:
    def cancel(original: Any, future: Any) -> bool:
        return bool(original(future)) or future.running()

    site.around(site.awaiting.AwaitedFuture, "cancel", cancel)


@executor_fault
def the_newest_work_first(site: Site) -> None:
    def submit(original: Any, dispatch: Any, work: object) -> object:
        with dispatch.resources.engine.lock:
            future = original(dispatch, work)
            dispatch.pending.move_to_end(future, last=False)
        return future

    site.around(site.dispatch.Dispatch, "submit", submit)


@executor_fault
def a_shutdown_that_does_not_cancel(site: Site) -> None:
    site.around(site.dispatch.Dispatch, "close", lambda original, dispatch, **_: original(dispatch))


@executor_fault
def a_shutdown_that_does_not_wait(site: Site) -> None:
    site.put(site.dispatch.Dispatch, "join", lambda _: None)


@executor_fault
def a_forgotten_executor_drops_its_work(site: Site) -> None:
    def forget(executor: Any) -> None:
        executor._dispatch.close(cancel=True)

    site.put(site.executor.JobserverExecutor, "__del__", forget)


@executor_fault
def a_loss_breaks_the_executor(site: Site) -> None:
    def lost(original: Any, dispatch: Any, future: Any, run: Any) -> None:
        original(dispatch, future, run)
        if isinstance(future.exception(), site.errors.LostResult):
            dispatch._break(future.exception(), str(future.exception()))

    site.around(site.dispatch.Dispatch, "_settle", lost)


@executor_fault
def a_loss_that_is_no_broken_pool(site: Site) -> None:
    site.put(site.dispatch, "lost_worker", lambda lost: lost)


@executor_fault
def an_executor_that_goes_on_after_its_initializer_failed(site: Site) -> None:
    def fail_none(_: object, cause: BaseException, text: str) -> object:
        return site.finishing.Breakage(cause, text)

    site.put(site.dispatch.Dispatch, "_break", fail_none)


@executor_fault
def an_executor_whose_map_has_no_buffer(site: Site) -> None:
    def submit_all(original: Any, *args: Any, **options: Any) -> object:
        return original(*args, **{**options, "buffersize": None})

    site.around(site.executor.JobserverExecutor, "map", submit_all)


@pytest.mark.parametrize("name", FAULTS)
def test_is_found(
    name: str, subject: ModuleType, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[name](Site(subject, monkeypatch))
    # As it is under `quick`, whatever runs now; and there is no need to find it in fewer steps.
    quick = settings(
        settings.get_profile("quick"),
        stateful_step_count=50,
        phases=[Phase.generate],
        database=None,
    )
    library = settings(quick, max_examples=TIMES * quick.max_examples)
    machines.Library.found = None
    tiers = [("tier 1", machines.Life, quick), ("tier 2", machines.Library, library)]
    if not any(_finds(machine, name, tier, current) for tier, machine, current in tiers):
        pytest.fail(f"nobody has found this fault: {name}")


def _finds(machine: Any, name: str, tier: str, current: settings) -> bool:
    try:
        run_state_machine_as_test(machine, settings=current)
    except BaseException as error:
        if isinstance(error, pytest.fail.Exception):
            raise
        told = getattr(machine, "found", None) or f"{type(error).__name__}: {error}"
        found.append((name, tier, told))
        return True
    return False


@pytest.mark.parametrize("name", POOL_FAULTS)
def test_is_found_in_the_slots_alone(
    name: str, subject: ModuleType, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    POOL_FAULTS[name](Site(subject, monkeypatch))
    quick = settings.get_profile("quick")
    current = settings(
        quick,
        max_examples=5 * quick.max_examples,
        stateful_step_count=50,
        phases=[Phase.generate],
        database=None,
    )
    machine = over_the_pool(subject, machines)
    assert _finds(machine, name, "tier 1", current), f"nobody has found this fault: {name}"


@pytest.mark.parametrize("name", TREE_FAULTS)
def test_is_found_by_trees(name: str, subject: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = importlib.import_module(f"{subject.__name__}.testing.trees")
    # What never comes to be as foretold is found then.
    monkeypatch.setattr(trees, "PATIENCE", PATIENCE)
    TREE_FAULTS[name](Site(subject, monkeypatch))
    current = settings(
        settings.get_profile("quick"),
        stateful_step_count=25,
        phases=[Phase.generate],
        database=None,
    )
    assert _finds(trees.Forked, name, "tier 3", current), f"nobody has found this fault: {name}"


@pytest.mark.parametrize("name", EXECUTOR_FAULTS)
def test_is_found_by_the_executors_machine(
    name: str, subject: ModuleType, executors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    EXECUTOR_FAULTS[name](Site(subject, monkeypatch))
    machine = type("Executor", (executors.Executor,), {"method": "fork", "patience": PATIENCE})
    quick = settings.get_profile("quick")
    current = settings(
        quick,
        # Other versions of hypothesis try other programs, and may need some more.
        max_examples=3 * round(EXAMPLES["fork"] * quick.max_examples),
        stateful_step_count=STEPS,
        phases=[Phase.generate],
        database=None,
    )
    assert _finds(machine, name, "tier 4", current), f"nobody has found this fault: {name}"


def test_a_failure_is_a_program_that_can_be_pasted(
    subject: ModuleType, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS["work launched twice"](Site(subject, monkeypatch))
    current = settings(
        settings.get_profile("quick"),
        max_examples=400,
        stateful_step_count=10,
        database=None,
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(machines.Library, settings=current)
    notes: Any = vars(caught.value)["__notes__"]  # no attribute of its own before Python 3.11
    printed = "\n".join(notes)
    program = printed[printed.index("state = ") : printed.index("state.teardown()")]
    assert len(program.splitlines()) < 12
    namespace: dict[str, Any] = {}
    exec(f"from {machines.__name__} import *", namespace)
    with pytest.raises(AssertionError):
        exec(program, namespace)
    namespace["state"].teardown()
