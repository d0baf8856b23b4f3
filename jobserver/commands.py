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
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, Callable, Final, Optional, TypedDict, Union, cast

import attrs

from . import forks, memory
from .engine import Engine
from .interrupts import shielded
from .resources import Resources
from .settings import Settings
from .sharing import Share, Style, share

Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]
Arguments = Union[Path, Sequence[Path]]
Stream = Union[int, IO[bytes], IO[str], None]
Completed = Union[subprocess.CompletedProcess[str], subprocess.CompletedProcess[bytes]]


class Options(TypedDict, total=False):
    """Arguments of `subprocess.Popen` that mean the same here."""

    bufsize: int
    executable: Optional[Path]
    stdin: Stream
    stdout: Stream
    stderr: Stream
    preexec_fn: Optional[Callable[[], object]]
    close_fds: bool
    shell: bool
    cwd: Optional[Path]
    env: Optional[Mapping[str, str]]
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    user: Union[str, int, None]
    group: Union[str, int, None]
    extra_groups: Optional[Iterable[Union[str, int]]]
    umask: int
    pipesize: int
    process_group: Optional[int]


_CHUNK: Final = 1 << 16  # bytes: what a pipe holds
_PATIENCE: Final = 0.25  # seconds, as subprocess has it for a command that ^C interrupts as well
_LOOK: Final = 0.05  # seconds, as subprocess has it, where the kernel does not tell of ends


class _Output:
    """One of a command's pipes to us."""

    def __init__(self, engine: Engine, pipe: IO[bytes]) -> None:
        self.chunks: list[bytes] = []
        self.ended = False
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
            self.chunks.append(data)
        else:
            self.close()

    def close(self) -> None:
        with self._engine.step:
            if not self.ended:
                self.ended = True
                self._engine.neglect(self._pipe.fileno())
                self._pipe.close()


class _End:
    """The end of a command, which its pidfd tells."""

    def __init__(self, engine: Engine, process: subprocess.Popen[bytes]) -> None:
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

    def __init__(self, engine: Engine, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._engine = engine
        self._outputs = {
            pipe: _Output(engine, pipe)
            for pipe in (process.stdout, process.stderr)
            if pipe is not None
        }
        self._end = _End(engine, process)

    def wait(self, deadline: Optional[float]) -> bool:
        """Wait until it has ended and its pipes are closed; False at the deadline."""

        def ready() -> bool:
            ended = self.process.poll() is not None
            return ended and all(output.ended for output in self._outputs.values())

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
        for output in self._outputs.values():
            output.close()

    @property
    def stdout(self) -> Optional[bytes]:
        """What it has written there so far; None if that was not into a pipe."""
        return self._written(self.process.stdout)

    @property
    def stderr(self) -> Optional[bytes]:
        return self._written(self.process.stderr)

    def _written(self, pipe: Optional[IO[bytes]]) -> Optional[bytes]:
        return None if pipe is None else b"".join(self._outputs[pipe].chunks)


@attrs.frozen
class Text:
    """How text is made of bytes, and the other way round."""

    encoding: Optional[str]  # None: the locale's
    errors: Optional[str]

    def encode(self, text: str) -> bytes:
        written = io.BytesIO()
        with self._wrapped(written) as stream:
            stream.write(text)
            stream.flush()
            return written.getvalue()

    def decode(self, data: bytes) -> str:
        with self._wrapped(io.BytesIO(data)) as stream:
            return stream.read()

    def _wrapped(self, data: io.BytesIO) -> io.TextIOWrapper:
        encoding = self.encoding or locale.getpreferredencoding(False)
        return io.TextIOWrapper(data, encoding=encoding, errors=self.errors)


def run(
    resources: Resources,
    settings: Settings,
    args: Arguments,
    *,
    style: Style,
    input: Union[str, bytes, None],  # noqa: A002 - as subprocess has it
    capture_output: bool,
    timeout: Optional[float],
    check: bool,
    text: Optional[Text],
    options: Options,
) -> Completed:
    """See `Jobserver.run`; `text` is None for bytes."""
    engine = resources.engine
    deadline = engine.deadline(timeout)
    with contextlib.ExitStack() as stack:
        streams: Options = {}
        if capture_output:
            if options.get("stdout") is not None or options.get("stderr") is not None:
                raise ValueError("stdout and stderr cannot be used with capture_output")
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            if options.get("stdin") is not None:
                raise ValueError("stdin and input cannot both be used")
            streams["stdin"] = stack.enter_context(_file_of(input, text))
        options = {**options, **streams}
        program = None if options.get("shell") else _program(args, options.get("executable"))
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
            _start(engine, args, shared, options, started)
            if not started[0].wait(deadline):
                assert timeout is not None, "without one there is no deadline"
                raise subprocess.TimeoutExpired(args, timeout)
        except BaseException as error:
            for command in started:
                command.kill(_PATIENCE if isinstance(error, KeyboardInterrupt) else 0.0)
                if isinstance(error, subprocess.TimeoutExpired):
                    error.stdout, error.stderr = command.stdout, command.stderr
            raise
        finally:
            for command in started:
                command.close()
    return _completed(started[0], args, check, text)


def _file_of(data: Union[str, bytes], text: Optional[Text]) -> IO[bytes]:
    if isinstance(data, str):
        if text is None:
            raise TypeError("input must be bytes, not str, unless text, encoding or errors is set")
        data = text.encode(data)
    elif text is not None:
        raise TypeError(f"input must be str with text, encoding or errors, not {type(data)}")
    file = os.fdopen(memory.open_unnamed(), "rb", buffering=0)
    try:
        memory.store(file.fileno(), (), (data,))
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
    engine: Engine, args: Arguments, shared: Share, options: Options, started: list[_Command]
) -> None:
    """Start a command, and put it into the list: an interrupt may come as soon as it is there."""
    options = {
        **options,
        "env": shared.env,
        "pass_fds": (*options.get("pass_fds", ()), *shared.pass_fds),
    }
    # Which arguments there are depends on the version of Python.
    popen = cast("Callable[..., subprocess.Popen[bytes]]", subprocess.Popen)
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


def _completed(command: _Command, args: Arguments, check: bool, text: Optional[Text]) -> Completed:
    status = command.process.returncode
    done: Completed
    if text is None:
        done = subprocess.CompletedProcess(args, status, command.stdout, command.stderr)
    else:
        outputs = command.stdout, command.stderr
        out, err = (None if data is None else text.decode(data) for data in outputs)
        done = subprocess.CompletedProcess(args, status, out, err)
    if check:
        done.check_returncode()
    return done
