"""A command on a slot, waited for as all else is: `subprocess.run`, through the engine.

While it waits, a thread moves along what this process has submitted, so that slots of work that
has finished are there for the command. What the command writes is read on the way; what it reads is
a file, so that nothing has to be written to it while it runs.
"""

from __future__ import annotations

import contextlib
import io
import locale
import os
import subprocess
from collections.abc import Collection, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Callable, Final, Optional, TypedDict, Union, cast

from . import forks, memory
from .engine import Engine
from .interrupts import shielded
from .resources import Resources
from .settings import Settings
from .sharing import Environment, Path, Share, Style, share

if TYPE_CHECKING:
    from typing_extensions import Buffer

Arguments = Union[Path, Sequence[Path]]
Stream = Union[int, IO[bytes], IO[str], None]
Process = Union[subprocess.Popen[str], subprocess.Popen[bytes]]
Completed = Union[subprocess.CompletedProcess[str], subprocess.CompletedProcess[bytes]]


class Options(TypedDict, total=False):
    """Arguments of `subprocess.Popen`, but for those that make text of bytes and Windows' own."""

    bufsize: int
    executable: Optional[Path]
    stdin: Stream
    stdout: Stream
    stderr: Stream
    preexec_fn: Optional[Callable[[], object]]
    close_fds: bool
    shell: bool
    cwd: Optional[Path]
    env: Optional[Environment]
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    user: Union[str, int, None]
    group: Union[str, int, None]
    extra_groups: Optional[Iterable[Union[str, int]]]
    umask: int
    pipesize: int
    process_group: Optional[int]


class AllOptions(Options, total=False):
    """Those as well that make text of bytes."""

    encoding: Optional[str]
    errors: Optional[str]
    text: Optional[bool]
    universal_newlines: Optional[bool]


_CHUNK: Final = 1 << 16  # bytes: what a pipe holds
_PATIENCE: Final = 0.25  # seconds, as subprocess has it for a command that ^C interrupts as well
_LOOK: Final = 0.05  # seconds, as subprocess has it, where the kernel does not tell of ends


class _Output:
    """One of a command's pipes to us."""

    def __init__(self, engine: Engine, pipe: Union[IO[bytes], IO[str]]) -> None:
        self.ended = False
        self._chunks: list[bytes] = []
        self._engine = engine
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        with engine.lock:
            engine.attend(pipe.fileno(), self)

    def advance(self) -> None:
        if self.ended:
            return
        try:
            data = os.read(self._pipe.fileno(), _CHUNK)
        except BlockingIOError:  # a wait within this one, a signal handler's, has read it
            return
        if data:
            self._chunks.append(data)
        else:
            self.close()

    def close(self) -> None:
        with self._engine.step:
            if not self.ended:
                self.ended = True
                self._engine.neglect(self._pipe.fileno())
                self._pipe.close()

    @property
    def data(self) -> bytes:
        """What has been written so far."""
        return b"".join(self._chunks)

    @property
    def content(self) -> Union[bytes, str]:
        """The same as it was asked for: text, if that was so."""
        if not isinstance(self._pipe, io.TextIOBase):
            return self.data
        text = self.data.decode(self._pipe.encoding, self._pipe.errors or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n")


class _End:
    """The end of a command, which its pidfd tells."""

    def __init__(self, engine: Engine, process: Process) -> None:
        self._engine = engine
        self._process = process
        self._pidfd = -1
        with contextlib.suppress(AttributeError, OSError):  # an old kernel, or a sandbox
            self._pidfd = forks.private(os.pidfd_open(process.pid))
        self.is_told = self._pidfd >= 0
        if self.is_told:
            with engine.lock:
                engine.attend(self._pidfd, self)

    def advance(self) -> None:
        if self._process.poll() is not None:
            self.close()

    def close(self) -> None:
        with self._engine.step:
            if self._pidfd >= 0:
                self._engine.neglect(self._pidfd)
                pidfd, self._pidfd = self._pidfd, -1
                forks.close(pidfd)


class _Command:
    """A command that has been started."""

    def __init__(self, engine: Engine, process: Process) -> None:
        self.process = process
        self._engine = engine
        self.outputs = tuple(
            None if pipe is None else _Output(engine, pipe)
            for pipe in (process.stdout, process.stderr)
        )
        self._end = _End(engine, process)

    def wait(self, deadline: Optional[float]) -> bool:
        """Wait until it has ended and its pipes are closed; False at the deadline."""

        def ready() -> bool:
            ended = self.process.poll() is not None
            return ended and all(output is None or output.ended for output in self.outputs)

        if self._end.is_told:
            return self._engine.wait(ready, deadline)
        while True:
            now = self._engine.clock()
            if deadline is not None and now >= deadline:
                return ready()
            soon = now + _LOOK if deadline is None else min(now + _LOOK, deadline)
            if self._engine.wait(ready, soon):
                return True

    def kill(self, patience: float) -> None:
        """End it, unless it does so within so many seconds by itself."""
        try:
            if patience:
                self.wait(self._engine.clock() + patience)
        finally:
            self.process.kill()  # which does nothing to one that has been waited for
            self.process.wait()

    def close(self) -> None:
        self._end.close()
        for output in self.outputs:
            if output is not None:
                output.close()


def run(
    resources: Resources,
    settings: Settings,
    args: Arguments,
    *,
    style: Style,
    input: Union[str, Buffer, None],  # noqa: A002 - as subprocess has it
    capture_output: bool,
    timeout: Optional[float],
    check: bool,
    options: AllOptions,
) -> Completed:
    """See `Jobserver.run`."""
    engine = resources.engine
    deadline = engine.deadline(timeout)
    # An iterator, which subprocess takes as well, can be read only once.
    argv = args if isinstance(args, (str, bytes, os.PathLike)) else list(args)
    with contextlib.ExitStack() as stack:
        streams: AllOptions = {}
        if capture_output:
            if options.get("stdout") is not None or options.get("stderr") is not None:
                raise ValueError("stdout and stderr cannot be used with capture_output")
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            if options.get("stdin") is not None:
                raise ValueError("stdin and input cannot both be used")
            streams["stdin"] = stack.enter_context(_file_of(input, options))
        options = {**options, **streams}
        if style == "auto" and options.get("user") is not None:
            style = "pipe"  # another user cannot open the fifo, whose directory is private
        program = None if options.get("shell") else _program(argv, options.get("executable"))
        shared = stack.enter_context(
            share(
                resources,
                settings,
                style,
                program=program,
                env=options.get("env"),
                deadline=deadline,
            )
        )
        started: list[_Command] = []
        try:
            _start(engine, argv, shared, options, started)
            if not started[0].wait(deadline):
                assert timeout is not None, "without one there is no deadline"
                raise subprocess.TimeoutExpired(args, timeout)
        except BaseException as error:
            for command in started:
                command.kill(_PATIENCE if isinstance(error, KeyboardInterrupt) else 0.0)
                if isinstance(error, subprocess.TimeoutExpired):
                    # As subprocess has it: no text, and None where nothing was written.
                    error.stdout, error.stderr = (
                        None if output is None else output.data or None
                        for output in command.outputs
                    )
            raise
        finally:
            for command in started:
                command.close()
    return _completed(started[0], args, check)


def _file_of(data: Union[str, Buffer], options: AllOptions) -> IO[bytes]:
    encoding, errors = options.get("encoding"), options.get("errors")
    is_text = encoding or errors or options.get("text") or options.get("universal_newlines")
    if isinstance(data, str):
        if not is_text:
            raise TypeError("input must be bytes, not str, unless text, encoding or errors is set")
        content = data.encode(encoding or locale.getpreferredencoding(False), errors or "strict")
    elif is_text:
        raise TypeError(f"input must be str with text, encoding or errors, not {type(data)}")
    else:
        content = memoryview(data).tobytes()
    file = os.fdopen(memory.open_unnamed(), "rb", buffering=0)
    try:
        memory.store(file.fileno(), (), (content,))
    except BaseException:
        file.close()
        raise
    return file


def _program(args: Arguments, executable: Optional[Path]) -> Optional[str]:
    """What is run, as far as it is known before a search on PATH."""
    if executable is None:
        executable = args if isinstance(args, (str, bytes, os.PathLike)) else next(iter(args), None)
    return None if executable is None else os.fsdecode(executable)


def _start(
    engine: Engine, args: Arguments, shared: Share, options: AllOptions, started: list[_Command]
) -> None:
    """Start a command, and put it into the list: an interrupt may come as soon as it is there."""
    passed = tuple(options.get("pass_fds", ()))
    if not passed and not options.get("close_fds", True):
        # Passed on one by one, for beside those that are passed on all others are closed.
        passed = _inheritable()
        options = {**options, "close_fds": True}
    options = {**options, "env": shared.env, "pass_fds": (*passed, *shared.pass_fds)}
    # Which arguments there are depends on the version of Python.
    popen = cast("Callable[..., Process]", subprocess.Popen)
    with shielded():
        # No other thread forks a worker meanwhile: it would keep the command's ends of its pipes,
        # and that by which subprocess learns that it has started. And a preexec_fn has subprocess
        # fork as Python does, whose children close what is private.
        with forks.opening, forks.handing_over(*shared.pass_fds):
            process = popen(args, **options)
        try:
            if process.stdin is not None:
                process.stdin.close()
            started.append(_Command(engine, process))
        except BaseException:
            process.kill()
            process.wait()
            raise


def _inheritable() -> tuple[int, ...]:
    """The descriptors, beyond the standard streams, that this process leaves to any program."""
    found: list[int] = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the listing is closed by now
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return tuple(found)


def _completed(command: _Command, args: Arguments, check: bool) -> Completed:
    outputs = (None if output is None else output.content for output in command.outputs)
    # Both are bytes, or both are text.
    done = cast(
        "Completed", subprocess.CompletedProcess(args, command.process.returncode, *outputs)
    )
    if check:
        done.check_returncode()
    return done
