"""Jobserver: immutable settings over shared resources."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.context import BaseContext, assert_spawning
from types import MappingProxyType, TracebackType
from typing import (
    TYPE_CHECKING,
    Callable,
    Final,
    Literal,
    NoReturn,
    Optional,
    TypeVar,
    Union,
    cast,
    overload,
)

import attrs

from . import hints
from .chunks import Chunksize, check_chunksize
from .cpus import usable_cpus
from .future import Future
from .make import NoJobserver, find_jobs
from .mapping import Results, calls_of
from .resources import Resources, join
from .settings import (
    EnvPairs,
    Gate,
    Settings,
    as_int,
    check_positive,
    check_seconds,
    check_timeout,
)
from .slots import LIMIT, SlotPool
from .waiting import Waiting

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from subprocess import CompletedProcess

    from typing_extensions import Buffer, ParamSpec, Self, Unpack

    from .commands import AllOptions, Arguments, Completed, Options
    from .sharing import Share, Style

    P = ParamSpec("P")

T = TypeVar("T")

Context = Union[str, BaseContext, None]

_NO_KWARGS: Final[Mapping[str, object]] = MappingProxyType({})


@attrs.frozen(init=False, eq=False, repr=False, getstate_setstate=False, match_args=False)
class Jobserver:
    """Runs functions in other processes under a fixed number of slots.

    A handle is immutable. `revise_env`, `replace_preexec`, `replace_sleep` and `copy.copy` make
    new handles on the same slots. A handle can be an argument of the work it submits, under every
    start method; then that work draws on the same slots as well.

    `context` is a start method's name, a multiprocessing context, or None for the platform's
    default. `slots` is how many pieces of work may run at once over the whole tree. None joins the
    jobserver of the `make -jN` in which this process runs, so that all of the build together runs
    no more than N; `from_environ` does so, too, and raises where this does not. Without one it
    stands for the number of CPUs that this process may use, and in a `make -j1` for 1. When there
    is one that cannot be joined, a RuntimeWarning says why and how to mend it, once a process.

    Raises TypeError for arguments of the wrong type, and ValueError for an unknown start method or
    for slots below 1 or above `select.PIPE_BUF` (a pipe holds the slots).
    """

    _resources: Resources
    _settings: Settings

    def __init__(self, context: Context = None, slots: Optional[int] = None) -> None:
        chosen = _context(context)
        if slots is None:
            resources = _join_or_create(chosen)
        else:
            resources = _create(chosen, _check_slots(slots))
        self._set(resources, Settings())

    @classmethod
    def from_environ(cls, context: Context = None) -> Self:
        """Join the jobserver that MAKEFLAGS names: that of the `make -jN` which runs this recipe.

        The process has its implicit slot, on which make started it, and draws on the others beside
        all else that the build runs. All that a process makes so share one implicit slot. Raises
        NoJobserver when there is none, or when make has not shared it with this recipe.
        """
        return cls._make(join(_context(context), os.environ), Settings())

    @property
    def slots(self) -> Optional[int]:
        """How many pieces of work may run at once; None where make does not say."""
        return self._resources.engine.slots.count

    @property
    def context(self) -> BaseContext:
        """The multiprocessing context that starts the workers."""
        return self._resources.context

    def revise_env(self, revision: EnvPairs) -> Self:
        """A new handle whose workers also have these environment variables set.

        Merged onto earlier revisions, and applied in the worker before anything else happens
        there; a value None unsets the name. Raises TypeError for what is not str, ValueError for
        an empty name, "=" or NUL in a name, and NUL in a value.
        """
        return self._with(self._settings.revise_env(revision))

    def replace_preexec(
        self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs
    ) -> Self:
        """A new handle whose workers call `fn(*args, **kwargs)` just before the work.

        It returns None, or a context manager that is entered around the work; when that swallows
        the work's exception, the result is None. What it raises is the work's exception.
        """
        return self._with(self._settings.replace_preexec(fn, args, kwargs))

    def replace_sleep(self, fn: Gate) -> Self:
        """A new handle that asks `fn()` before it accepts each submission.

        None admits; a number >= 0 is how many seconds to sleep before asking again (never past
        the submission's deadline); anything else is a ValueError. What it raises passes. It is
        asked in the submitting process once there is a slot, and for `consume=0` too.
        """
        return self._with(self._settings.replace_sleep(fn))

    def replace_workers(self, max_tasks: Optional[int] = None, idle: float = 10.0) -> Self:
        """A new handle whose workers serve up to `max_tasks` submissions each (None: any number).

        A worker leaves when it has been idle for `idle` seconds. Work and arguments are pickled
        then, under every start method. Each submission has its env, its preexec and its slot as
        with a fresh worker, which `max_tasks=1`, the default of a Jobserver, gives to each.

        Raises TypeError for what is not a number, ValueError for `max_tasks` below 1 and for `idle`
        that is negative or not finite.
        """
        tasks = None if max_tasks is None else check_positive("max_tasks", max_tasks)
        seconds = check_seconds("idle", idle)
        return self._with(self._settings.replace_workers(tasks, seconds))

    @hints.arguments_by_name
    def submit(
        self,
        fn: Callable[..., T],
        *,
        args: Iterable[object] = (),
        kwargs: Mapping[str, object] = _NO_KWARGS,
        consume: int = 1,
        timeout: Optional[float] = None,
    ) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a worker once there is a slot.

        Waits for a slot for at most `timeout` seconds (0: not at all; None: without end), and
        reclaims finished work meanwhile. Work that holds a slot itself and submits without a
        timeout into a full tree has the new work run on its own slot, and waits until that is
        done or has a slot of its own. `consume=0` takes no slot: the escape that lets a full tree
        go one deeper.

        Raises Blocked when there was no slot in time; TypeError and ValueError for bad arguments,
        and TypeError for what cannot be pickled for the start method; CallbackRaised when a
        callback of an earlier Future that became due raised; OSError when the system cannot start
        another process. Nothing was submitted then, and the slot is free.
        """
        work = _check_work(fn, args, kwargs)
        count = _check_consume(consume)
        seconds = check_timeout(timeout)
        resources = self._resources
        run = resources.submit(self._settings, work, count, resources.engine.deadline(seconds))
        return Future(resources.engine, run)

    def __call__(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """`submit` with its defaults: wait without end for a slot, then run the call."""
        return self.submit(fn, args=args, kwargs=kwargs)

    def map(
        self,
        fn: Callable[..., T],
        argses: Optional[Iterable[Iterable[object]]] = None,
        kwargses: Optional[Iterable[Mapping[str, object]]] = None,
        *,
        timeout: Optional[float] = None,
        chunksize: Chunksize = 1,
        buffersize: Optional[int] = None,
    ) -> Iterator[T]:
        """The results of `fn(*args, **kwargs)` for each of `argses` and `kwargses`, in order.

        `argses` yields iterables of positional arguments, `kwargses` mappings of keyword
        arguments; when both are given they have the same length. The inputs are collected now,
        unless `buffersize` bounds how many submissions are outstanding: then they are read as the
        results are.

        `chunksize` calls go into one submission; with "auto" it begins with single calls, and goes
        on with as many at once as take a few milliseconds, or longer where it takes long to start a
        worker, by what earlier ones took. What befalls a submission as a whole (its worker is
        killed, its arguments cannot be pickled) befalls each of its calls.

        A call's exception is raised at its own position, and the iterator goes on after it. A
        StopIteration, which would end it, is raised as a RuntimeError whose cause it is.
        `timeout` counts from now; past it the iterator raises Blocked. Leaving the iterator early
        cancels nothing.
        """
        _check_callable(fn)
        seconds = check_timeout(timeout)
        chunk = check_chunksize(chunksize)
        buffer = None if buffersize is None else check_positive("buffersize", buffersize)
        self._resources.check_open()
        calls = calls_of(argses, kwargses, lazily=buffer is not None)
        return Results(
            self._resources,
            self._settings,
            fn,
            calls,
            timeout=seconds,
            chunksize=chunk,
            buffersize=buffer,
        )

    @overload
    def run(
        self,
        args: Arguments,
        *,
        style: Style = "auto",
        input: Optional[str] = None,
        capture_output: bool = False,
        timeout: Optional[float] = None,
        check: bool = False,
        encoding: Optional[str] = None,
        errors: Optional[str] = None,
        text: Literal[True],
        universal_newlines: Optional[bool] = None,
        **options: Unpack[Options],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        args: Arguments,
        *,
        style: Style = "auto",
        input: Optional[str] = None,
        capture_output: bool = False,
        timeout: Optional[float] = None,
        check: bool = False,
        encoding: str,
        errors: Optional[str] = None,
        text: Optional[bool] = None,
        universal_newlines: Optional[bool] = None,
        **options: Unpack[Options],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        args: Arguments,
        *,
        style: Style = "auto",
        input: Optional[str] = None,
        capture_output: bool = False,
        timeout: Optional[float] = None,
        check: bool = False,
        encoding: Optional[str] = None,
        errors: str,
        text: Optional[bool] = None,
        universal_newlines: Optional[bool] = None,
        **options: Unpack[Options],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        args: Arguments,
        *,
        style: Style = "auto",
        input: Optional[str] = None,
        capture_output: bool = False,
        timeout: Optional[float] = None,
        check: bool = False,
        encoding: Optional[str] = None,
        errors: Optional[str] = None,
        text: Optional[bool] = None,
        universal_newlines: Literal[True],
        **options: Unpack[Options],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        args: Arguments,
        *,
        style: Style = "auto",
        input: Optional[Buffer] = None,
        capture_output: bool = False,
        timeout: Optional[float] = None,
        check: bool = False,
        encoding: None = None,
        errors: None = None,
        text: Optional[Literal[False]] = None,
        universal_newlines: Optional[Literal[False]] = None,
        **options: Unpack[Options],
    ) -> CompletedProcess[bytes]: ...

    def run(
        self,
        args: Arguments,
        *,
        style: Style = "auto",
        input: Union[str, Buffer, None] = None,  # noqa: A002 - as subprocess has it
        capture_output: bool = False,
        timeout: Optional[float] = None,
        check: bool = False,
        **options: Unpack[AllOptions],
    ) -> Completed:
        """Run a command on a slot, as `subprocess.run` does, and let it draw on the other slots.

        The arguments and the result are those of `subprocess.run`. The command holds one slot for
        as long as it runs, and waits for it as `submit` does; within work, that is the slot of the
        work itself, which has no use for it meanwhile. A make, ninja or cargo that the command is,
        or starts, takes others as it needs them: its environment has a jobserver in MAKEFLAGS. Do
        not give it -j.

        `style` says how MAKEFLAGS names the jobserver: "fifo", which make >= 4.4, ninja >= 1.13 and
        cargo understand; "pipe", for make < 4.4 and gcc < 13; or "auto": both, in such a way that
        each finds its own. `revise_env` and `replace_sleep` hold for commands as well.

        `timeout` seconds count from the call. Raises Blocked when there was no slot in time, and
        otherwise what `subprocess.run` and `submit` raise; ValueError for another style;
        RuntimeError for "fifo" where there is none; NotImplementedError where there is no /proc.
        """
        from . import commands, sharing

        sharing.check_style(style)
        return commands.run(
            self._resources,
            self._settings,
            args,
            style=style,
            input=input,
            capture_output=capture_output,
            timeout=check_timeout(timeout),
            check=check,
            options=options,
        )

    def share(self, style: Style = "auto") -> AbstractContextManager[Share]:
        """A slot for one command that is started otherwise, and what lets it draw on the others.

            with js.share() as shared:
                subprocess.run(command, env=shared.env, pass_fds=shared.pass_fds)

        Waits for the slot as `run` does, and gives it back at the end of the block, by when the
        command is to have ended. Within work it is the slot of the work itself, so that is to
        compute nothing meanwhile. For several commands enter several. Not for a process that is
        started with `preexec_fn`, as it would not inherit the descriptors.
        """
        from . import sharing

        sharing.check_style(style)
        return sharing.share(self._resources, self._settings, style)

    def waiting(self) -> AbstractContextManager[None]:
        """A block in which this thread computes nothing, so its process's slot may be used.

            with js.waiting():
                queue.get()  # put by a callback of work that this process has submitted

        In a full tree, work that waits for its own nested work by other means than `result`, `wait`
        and the like would wait for ever: its slot is the one that the nested work needs. Within the
        block, pending work of this process's executors may run on that slot, and so may what other
        threads submit with a timeout. However many threads wait, it is one slot. Blocks can be
        nested. Where no slot is held, as in the main program, a block does nothing.

        The end of the outermost block gives the slot back to this thread: it waits until the work
        on it has ended or has a slot of its own. Raises RuntimeError when the Jobserver is closed.
        """
        self._resources.check_open()
        return Waiting(self._resources.engine)

    def reclaim_resources(self) -> None:
        """Free what has finished and run its callbacks; the cost is that of what has finished.

        Raises CallbackRaised when a callback raised; the remaining ones run at the next call.
        """
        self._resources.check_open()
        self._resources.reclaim()

    def drain(self, timeout: Optional[float] = None) -> None:
        """Wait until all that this process submitted is done and its callbacks have run.

        For at most `timeout` seconds (None: without end), and for what was submitted through any
        handle on these slots, callbacks included. It does not wait for an executor's work, nor for
        what other processes submit. Within a callback it waits for work only; the callbacks that
        become due run once that callback has returned.

        Raises CallbackRaised as `Future.done` does, and the remaining callbacks run at the next
        call; Blocked at the timeout.
        """
        self._resources.drain(check_timeout(timeout))

    def __enter__(self) -> Self:
        """Entries are counted over all handles on these slots; the last exit closes them."""
        self._resources.enter()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """The last exit reclaims what has finished, runs its callbacks, and closes.

        Work that still runs goes on, and its Futures can still be waited for: `drain` before the
        end of the block waits for all of them. Callbacks that raise are reported as RuntimeWarning,
        and those that can no longer run, because nobody has their Future, as ResourceWarning.
        """
        self._resources.exit()

    if not TYPE_CHECKING:  # or checkers would take any name for one of ours

        def __getattr__(self, name: str) -> NoReturn:
            raise hints.no_attribute(self, name, hints.OF_A_JOBSERVER)

    def _with(self, settings: Settings) -> Self:
        self._resources.check_open()
        return self._make(self._resources, settings)

    @classmethod
    def _make(cls, resources: Resources, settings: Settings) -> Self:
        handle = cls.__new__(cls)
        handle._set(resources, settings)
        return handle

    def _set(self, resources: Resources, settings: Settings) -> None:
        # The handle is frozen; this is how attrs itself fills it.
        object.__setattr__(self, "_resources", resources)
        object.__setattr__(self, "_settings", settings)

    def __copy__(self) -> Self:
        return self._make(self._resources, self._settings)

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __getstate__(self) -> tuple[Resources, Settings]:
        assert_spawning(self)
        self._resources.check_open()
        return self._resources, self._settings

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple):
            raise TypeError(f"the state of a Jobserver is a tuple, not {state!r}")
        parts = cast("tuple[object, ...]", state)
        if len(parts) != 2:
            raise ValueError(f"the state of a Jobserver has 2 parts, not {len(parts)}: {state!r}")
        resources, settings = parts
        if not isinstance(resources, Resources) or not isinstance(settings, Settings):
            raise TypeError(f"malformed state of a Jobserver: {state!r}")
        self._set(resources, settings)

    def __repr__(self) -> str:
        return repr(self._resources)


# attrs makes it where `init` is False. Nothing calls it, and `help` would show it to users.
delattr(Jobserver, "__attrs_init__")


def share(jobserver: Jobserver) -> tuple[Resources, Settings]:
    """What an executor on the same slots uses of a handle."""
    return jobserver._resources, jobserver._settings  # pyright: ignore[reportPrivateUsage]


def _context(context: object) -> BaseContext:
    if context is None:
        return multiprocessing.get_context()
    if isinstance(context, str):
        return multiprocessing.get_context(context)
    if isinstance(context, BaseContext):
        # The default context, which resolves late, is settled now.
        return context.get_context()
    raise TypeError(
        "context must be a start method's name, a multiprocessing context or None, "
        f"not {context!r} of type {type(context).__qualname__}"
    )


def _check_slots(slots: object) -> int:
    count = check_positive("slots", slots, " or None")
    if count > LIMIT:
        raise ValueError(
            f"slots must be at most {LIMIT} (select.PIPE_BUF: a pipe holds them), not {slots!r}"
        )
    return count


_warned = False


def _join_or_create(context: BaseContext) -> Resources:
    """For slots=None: make's jobserver, if this process runs in one; else as many as CPUs."""
    try:
        return join(context, os.environ)
    except NoJobserver as error:
        if error.reason not in ("absent", "not a jobserver"):
            _warn(error)
    # A make that is to run one job at a time has no jobserver.
    one = find_jobs(os.environ.get("MAKEFLAGS")) == 1
    return _create(context, 1 if one else min(usable_cpus(), LIMIT))


def _warn(error: NoJobserver) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"this Jobserver does not share make's slots: {error}",
            RuntimeWarning,
            stacklevel=4,  # of whoever made it
        )


def _create(context: BaseContext, count: int) -> Resources:
    pool = SlotPool.create(count)
    try:
        return Resources.open(context, pool)
    except BaseException:
        pool.close()
        raise


def _check_callable(fn: object) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be callable, not {fn!r} of type {type(fn).__qualname__}")


def _check_work(
    fn: Callable[..., object], args: object, kwargs: object
) -> tuple[Callable[..., object], tuple[object, ...], dict[str, object]]:
    _check_callable(fn)
    # The common case first: an abstract class asks around, in many pages of memory.
    if isinstance(args, (str, bytes)) or not isinstance(args, (tuple, list, Iterable)):
        raise TypeError(
            f"args must be iterable, not {args!r} of type {type(args).__qualname__}"
            f"{hints.for_one_argument(args)}"
        )
    if not isinstance(kwargs, (dict, MappingProxyType, Mapping)):
        raise TypeError(
            f"kwargs must be a mapping, not {kwargs!r} of type {type(kwargs).__qualname__}"
        )
    # Copied: the mapping's own class need not be one that can be pickled.
    return fn, tuple(cast("Iterable[object]", args)), dict(cast("Mapping[str, object]", kwargs))


def _check_consume(consume: object) -> int:
    count = as_int(consume)
    if count not in (0, 1):
        raise ValueError(f"consume must be 0 or 1, not {consume!r}")
    return count
