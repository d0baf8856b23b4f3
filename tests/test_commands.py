"""`run` and `share`: `subprocess.run` on a slot, and what a command is given."""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Optional

import pytest

from jobserver import Blocked, CallbackRaised, Jobserver, LostResult, commands
from jobserver.make import Descriptors, Fifo, find_auth
from tests.processes import check_slots, run_program
from tests.work import PATIENCE, Gate, add, await_file, die, pass_gate, raise_value_error

SHOW = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


def environment(js: Jobserver, **options: Any) -> dict[str, str]:
    """What a command has in its environment."""
    done = js.run(SHOW, stdout=subprocess.PIPE, check=True, **options)
    found: dict[str, str] = json.loads(done.stdout)
    return found


# As subprocess.run has it


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["true"], {}),
        (["sh", "-c", "exit 3"], {}),
        (["sh", "-c", "kill -9 $$"], {}),
        (["sh", "-c", "echo out; echo err >&2"], {"capture_output": True}),
        (["sh", "-c", "echo out; echo err >&2"], {"stdout": -1, "stderr": -2}),
        ("echo $0 out; exit 2", {"shell": True, "stdout": -1}),
        (["printf", "a\\r\\nb\\rc\\n\\303\\244"], {"stdout": -1, "text": True}),
        (["printf", "a\\r\\nb\\rc\\n\\303\\244"], {"stdout": -1}),
        (["printf", "a\\r\\nb"], {"stdout": -1, "text": True, "bufsize": 1}),
        (["printf", "\\344"], {"stdout": -1, "encoding": "latin-1"}),
        (["printf", "a\\377"], {"stdout": -1, "errors": "replace", "encoding": "ascii"}),
        (["cat"], {"stdout": -1, "input": b"in\n"}),
        (["cat"], {"stdout": -1, "input": b""}),
        (["cat"], {"stdout": -1, "input": memoryview(bytearray(b"in"))}),
        (["cat"], {"stdout": -1, "input": "\u00e4\r\n", "universal_newlines": True}),
        (["cat"], {"stdout": -1, "input": "\u00e4b", "errors": "ignore", "encoding": "ascii"}),
        (["sh", "-c", "echo $ADDED"], {"stdout": -1, "env": {b"ADDED": Path("/\udce4")}}),
        (["cat"], {"stdout": -1, "input": "\u00e4\n", "text": True}),
        (["cat"], {"stdout": -1, "input": "\u00e4", "encoding": "latin-1"}),
        (["cat"], {"stdin": subprocess.PIPE, "stdout": -1}),
        (["cat"], {"stdin": subprocess.DEVNULL, "stdout": -1}),
        (["pwd"], {"cwd": "/", "stdout": -1}),
        (["a name", "-c", "echo $0"], {"executable": "/bin/sh", "stdout": -1}),
        (["head", "-c", "1000000", "/dev/zero"], {"stdout": -1}),
        (["sh", "-c", "umask"], {"stdout": -1, "preexec_fn": lambda: os.umask(0o27)}),
    ],
)
def test_gives_what_subprocess_gives(args: Any, options: Any) -> None:
    with Jobserver("fork", 1) as js:
        assert repr(js.run(args, **options)) == repr(subprocess.run(args, check=False, **options))


# Says what became of the arguments below; given two descriptors.
DESCRIBE = """
for fd in $1 $2; do test -e /proc/$$/fd/$fd; echo open $?; done; grep SigIgn /proc/$$/status
umask; id -u; id -g; id -G; pwd; cat; echo "$ADDED"; echo err >&2; printf '\\303\\244\\r\\n'
set -- $(cat /proc/$$/stat); [ $5 = $$ ]; echo leads group $?; [ $6 = $$ ]; echo leads session $?
"""
NOBODY = 65534


def arguments(fd: int) -> dict[str, Any]:
    """A value for each argument of `subprocess.Popen`."""
    return {
        "bufsize": 0,
        "close_fds": False,
        "cwd": "/",
        "encoding": "latin-1",
        "env": {"ADDED": "1"},
        "errors": "replace",
        "executable": "/bin/echo",
        "extra_groups": [NOBODY],
        "group": NOBODY,
        "pass_fds": [fd],
        "pipesize": 1 << 14,
        "preexec_fn": lambda: os.umask(0o27),
        "process_group": 0,
        "restore_signals": False,
        "shell": True,
        "start_new_session": True,
        "stderr": subprocess.PIPE,
        "stdin": subprocess.PIPE,
        "stdout": subprocess.DEVNULL,
        "text": True,
        "umask": 0o27,
        "universal_newlines": True,
        "user": NOBODY,
    }


WINDOWS = {"creationflags", "startupinfo"}
POPEN = set(inspect.signature(subprocess.Popen).parameters) - {"args"} - WINDOWS
UNSEEN = {"bufsize", "pipesize", "stdin"}  # by this command


@pytest.mark.parametrize("name", sorted(POPEN))
def test_an_argument_has_the_effect_that_it_has_on_subprocess(name: str) -> None:
    def outcome(run: Any, **options: Any) -> str:
        command = ["sh", "-c", DESCRIBE, "sh", str(inheritable), str(private)]
        try:
            return repr(run(command, **{"stdout": subprocess.PIPE, **options}))
        except OSError as error:  # who may not become another user
            return repr(error)

    private, inheritable = os.pipe()
    os.set_inheritable(inheritable, True)
    given = {name: arguments(private)[name]}
    with Jobserver("fork", 1) as js:
        ours = outcome(js.run, **given)
        assert ours == outcome(subprocess.run, **given)
        assert (ours == outcome(js.run)) == (name in UNSEEN)
    os.close(private)
    os.close(inheritable)


def test_arguments_are_those_of_subprocess() -> None:
    """Of its newest version: what the running one does not know, it refuses."""
    known = set(commands.AllOptions.__annotations__)
    assert not POPEN - known
    with Jobserver("fork", 1) as js:
        for name in known - POPEN:
            with pytest.raises(TypeError, match=name):
                js.run(["true"], **{name: arguments(0)[name]})
    own = set(inspect.signature(subprocess.run).parameters) - {"popenargs", "kwargs"}
    assert not own - set(inspect.signature(Jobserver.run).parameters)


def test_arguments_may_be_paths() -> None:
    with Jobserver("fork", 1) as js:
        assert js.run(Path("/bin/true")).returncode == 0
        assert js.run([Path("/bin/echo"), b"x"], stdout=subprocess.PIPE).stdout == b"x\n"


@pytest.mark.parametrize("options", [{}, {"executable": "printf"}, {"shell": True}])
def test_arguments_may_come_from_an_iterator(options: Any) -> None:
    """Typed as a sequence, but subprocess takes it, and all of it."""

    def outcome(run: Any) -> object:
        words = iter(["echo", "printf", "x"])
        done = run(words, stdout=subprocess.PIPE, **options)
        return done.stdout, done.args is words

    with Jobserver("fork", 1) as js:
        assert outcome(js.run) == outcome(subprocess.run)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["true"], {"input": b"", "stdin": subprocess.DEVNULL}),
        (["true"], {"capture_output": True, "stdout": subprocess.DEVNULL}),
        (["true"], {"capture_output": True, "stderr": subprocess.DEVNULL}),
        (["true"], {"input": "text"}),
        (["true"], {"input": b"bytes", "text": True}),
        (["true"], {"style": "named pipe"}),
        (["true"], {"timeout": -1}),
        (["true"], {"timeout": "1"}),
        (["true"], {"cores": 2}),
        (["true"], {"text": True, "universal_newlines": False}),
        (["true"], {"stdout": subprocess.PIPE, "encoding": "no such encoding"}),
        (["true"], {"input": "\u00e4", "encoding": "ascii"}),
        (["true"], {"env": {"A": 1}}),
        (["true"], {"env": {"A=B": "1"}}),
        (["no such program"], {}),
        (["true"], {"cwd": "/no/such/folder"}),
        ([], {}),
    ],
)
def test_what_cannot_be_run_leaves_nothing_behind(args: Any, options: Any, tmp_path: Path) -> None:
    js = Jobserver("fork", 2)
    js.run(["true"])  # a description is kept for the next slot
    before = os.listdir("/proc/self/fd")
    with pytest.raises((TypeError, ValueError, OSError, LookupError, subprocess.SubprocessError)):
        js.run(args, **options)
    assert os.listdir("/proc/self/fd") == before
    check_slots(js, 2, tmp_path / "check")


def test_an_unknown_style_is_refused_before_a_slot_is_taken() -> None:
    unknown: Any = "named pipe"
    with Jobserver("fork", 1) as js:
        with pytest.raises(ValueError, match=r"style must be one of .*, not 'named pipe'"):
            js.share(unknown)
        with js.share():  # nobody else has the one slot
            pass


def test_check_raises_with_what_was_written(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        js.run(command, capture_output=True, text=True, check=True)
    assert (caught.value.returncode, caught.value.cmd) == (3, command)
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "err\n")
    check_slots(js, 1, tmp_path / "check")


@pytest.mark.parametrize(
    ("options", "written", "told"),
    [
        ({"capture_output": True}, b"out", b"out"),
        ({"capture_output": True, "text": True}, b"out", b"out"),
        ({"capture_output": True}, b"", None),
        ({"capture_output": True, "text": True}, b"", None),
        ({"stdout": subprocess.DEVNULL}, b"out", None),
    ],
)
def test_a_command_is_killed_at_its_timeout(
    options: Any, written: bytes, told: Optional[bytes], tmp_path: Path
) -> None:
    def write() -> None:
        os.write(1, written)  # before the command runs, so in time

    command = ["sleep", "1000"]
    with Jobserver("fork", 1) as js:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            js.run(command, timeout=0.2, preexec_fn=write, **options)
        assert (caught.value.cmd, caught.value.timeout) == (command, 0.2)
        assert caught.value.stdout == told
        assert caught.value.stderr is None
        check_slots(js, 1, tmp_path / "check")


def test_where_the_kernel_does_not_tell_of_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(f"no pidfd of {pid}")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    js = Jobserver("fork", 1)
    assert js.run(["sh", "-c", "echo x; exit 4"], capture_output=True).stdout == b"x\n"
    assert js.run(["sh", "-c", "exit 4"]).returncode == 4
    with pytest.raises(subprocess.TimeoutExpired):
        js.run(["sleep", "1000"], timeout=0.1)
    monkeypatch.undo()
    check_slots(js, 1, tmp_path / "check")


# A slot


def test_a_command_waits_for_a_slot(method: str, tmp_path: Path) -> None:
    with Jobserver(method, 1) as js, Gate(tmp_path) as gate:
        future = js(pass_gate, gate.path)
        for timeout in (0, 0.05):
            with pytest.raises(Blocked):
                js.run(["true"], timeout=timeout)
        gate.open()
        assert js.run(["true"], timeout=PATIENCE).returncode == 0
        assert future.wait(PATIENCE)


def test_a_command_holds_one_slot(tmp_path: Path) -> None:
    with Jobserver("fork", 1) as js, Gate(tmp_path) as gate:
        began = str(tmp_path / "began")
        script = f"touch {began}; head -c 1 < {gate.path}"
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            done = threads.submit(js.run, ["sh", "-c", script])
            await_file(began)
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=0)
            gate.open()
            assert done.result(PATIENCE).returncode == 0
        assert js.submit(add, args=(1, 2), timeout=0).result() == 3


def run_in_work(js: Jobserver, depth: int) -> str:
    """Run a command, on the slot of this work; below others that do nothing meanwhile."""
    if depth:
        return js(run_in_work, js, depth - 1).result()
    return js.run(["echo", "deep"], stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize("depth", [0, 2])
def test_work_runs_a_command_on_its_own_slot(method: str, depth: int) -> None:
    with Jobserver(method, 1) as js:
        assert js(run_in_work, js, depth).result(PATIENCE) == "deep\n"


def count_bytes_beside_a_command(js: Jobserver) -> int:
    """How many slots a command may draw on beside its own."""
    script = "import os, sys, time; r = int(sys.argv[1]); os.set_blocking(r, False); "
    script += "got = os.read(r, 99); os.write(int(sys.argv[2]), got); print(len(got))"
    with js.share("pipe") as shared:
        auth = find_auth(shared.env["MAKEFLAGS"])
        assert isinstance(auth, Descriptors)
        done = subprocess.run(
            [sys.executable, "-c", script, str(auth.read), str(auth.write)],
            pass_fds=shared.pass_fds,
            stdout=subprocess.PIPE,
            check=True,
        )
    return int(done.stdout)


def test_a_command_of_work_leaves_the_other_slots_free(method: str) -> None:
    with Jobserver(method, 3) as js:
        assert js(count_bytes_beside_a_command, js).result(PATIENCE) == 2
        assert count_bytes_beside_a_command(js) == 2


def test_slots_of_finished_work_are_there_for_a_command(method: str, tmp_path: Path) -> None:
    """The command waits for the slot of work that ends meanwhile, which nobody else gives back."""
    with Jobserver(method, 2) as js, Gate(tmp_path) as gate:
        future = js(pass_gate, gate.path)
        script = "import os, sys; token = os.read(int(sys.argv[1]), 1); "
        script += "os.write(int(sys.argv[2]), token)"
        wait = f"printf x > {gate.path}; r=${{MAKEFLAGS##*=}}; "
        wait += f"exec {sys.executable} -c '{script}' ${{r%,*}} ${{r#*,}}"
        assert js.run(["sh", "-c", wait], style="pipe", timeout=PATIENCE).returncode == 0
        assert future.done()


# Puts the slot on which it runs into the pipe while it waits, as cc-rs 1.0.42 to 1.0.82 and
# rustc -Zthreads do, and reads it back.
LEND = r"""
import os, re, sys, time
auth = re.findall(r"--jobserver-auth=(\S+)", os.environ["MAKEFLAGS"])[-1]
if auth.startswith("fifo:"):
    read = write = os.open(auth[len("fifo:"):], os.O_RDWR)
else:
    read, write = map(int, auth.split(","))
os.write(write, b"+")
open(sys.argv[1], "w").close()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.002)
sys.exit(os.read(read, 1) != b"+")
"""


@pytest.mark.parametrize("style", ["fifo", "pipe"])
def test_a_command_gets_back_the_slot_that_it_has_lent(
    method: str, style: Any, tmp_path: Path
) -> None:
    lent, enough = str(tmp_path / "lent"), str(tmp_path / "enough")
    with Jobserver(method, 1) as js, Gate(tmp_path) as gate:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            command = [sys.executable, "-c", LEND, lent, enough]
            running = threads.submit(js.run, command, style=style, timeout=PATIENCE)
            await_file(lent)
            # Each of these looks for slots of the dead, and uses the one that is lent.
            js.run(["true"], check=True)
            with pytest.raises(LostResult):
                js.replace_workers().submit(die, timeout=PATIENCE).result()
            held = js.submit(pass_gate, args=(gate.path,), timeout=PATIENCE)
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=0)
            gate.open()
            assert held.wait(PATIENCE)
            Path(enough).touch()
            assert running.result().returncode == 0
        check_slots(js, 1, tmp_path / "slots")


def test_the_gate_is_asked_for_commands_too() -> None:
    answers = [0.0, None, None]
    with Jobserver("fork", 1).replace_sleep(lambda: answers.pop(0)) as js:
        assert js.run(["true"]).returncode == 0
        assert answers == [None]
        with js.share():
            assert answers == []


def test_callbacks_run_before_a_command_or_after_it(tmp_path: Path) -> None:
    with Jobserver("fork", 2) as js, Gate(tmp_path) as gate, Gate(tmp_path, "first") as first:
        early = js(pass_gate, first.path)
        early.when_done(raise_value_error, "early")
        late = js(pass_gate, gate.path)
        late.when_done(raise_value_error, "late")
        ran = tmp_path / "ran"
        first.open()
        with pytest.raises(CallbackRaised):
            js.run(["touch", str(ran)])
        assert not ran.exists()
        assert js.run(["sh", "-c", f"printf x > {gate.path}"]).returncode == 0
        with pytest.raises(CallbackRaised):
            late.wait(PATIENCE)
        assert early.done()


def test_a_closed_jobserver_runs_nothing() -> None:
    with Jobserver("fork", 1) as js:
        pass
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.run(["true"])
    with pytest.raises(RuntimeError, match="Jobserver is closed"):
        js.share().__enter__()


def test_a_command_outlives_the_last_exit_of_the_jobserver() -> None:
    js = Jobserver("fork", 1)
    with js.share() as shared:
        with js:
            pass
        subprocess.run(["true"], env=shared.env, pass_fds=shared.pass_fds, check=True)


# What a command is given


def test_makeflags_keep_their_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAKELEVEL", "CARGO_MAKEFLAGS", "MFLAGS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MAKEFLAGS", "kw -j4 --jobserver-auth=98,99 --no-print-directory -- A=b")
    with Jobserver("fork", 1) as js:
        env = environment(js, style="fifo")
        auth = find_auth(env["MAKEFLAGS"])
        assert isinstance(auth, Fifo)
        words = ["kw", "--no-print-directory", f"--jobserver-auth={auth}", "--", "A=b"]
        assert env["MAKEFLAGS"].split() == words
        assert not {"MAKELEVEL", "CARGO_MAKEFLAGS", "MFLAGS"} & set(env)
    assert os.environ["MAKELEVEL"] == "1"


def test_env_is_the_commands_own_and_revised() -> None:
    with Jobserver("fork", 1).revise_env({"ADDED": "1", "GONE": None}) as js:
        env = environment(js, env={"GONE": "2", "KEPT": "3"})
        assert (env["ADDED"], env["KEPT"]) == ("1", "3")
        assert "GONE" not in env
        assert "PATH" not in env


@pytest.mark.parametrize(
    ("style", "kinds"), [("pipe", [Descriptors]), ("fifo", [Fifo]), ("auto", [Descriptors, Fifo])]
)
def test_styles(style: Any, kinds: list[type]) -> None:
    with Jobserver("fork", 1) as js:
        words = environment(js, style=style)["MAKEFLAGS"].split()
    auths = [word for word in words if word.startswith("--jobserver-auth=")]
    assert [type(find_auth(word)) for word in auths] == kinds
    # make before 4.4 takes a fifo for an error, and ours is the last that it is told of.
    others = [word for word in words if word not in auths]
    assert all(word.startswith("--jobserver-au=") for word in others)


def test_a_command_inherits_what_it_is_given_and_no_more() -> None:
    read, write = os.pipe()
    with Jobserver("fork", 1) as js:
        done = js.run(["ls", "/proc/self/fd"], pass_fds=[read], capture_output=True)
        with js.share() as shared:
            ours = len(shared.pass_fds)
    os.close(read)
    os.close(write)
    inherited = set(map(int, done.stdout.split())) - {0, 1, 2}
    assert read in inherited
    assert write not in inherited
    assert ours == 3  # the two ends of the pipe, and the presence
    assert len(inherited) == 1 + ours + 1  # and that of the listing


def test_a_command_with_a_preexec_function_inherits_as_much() -> None:
    with Jobserver("fork", 2) as js:
        script = "r=${MAKEFLAGS##*=}; test -p /proc/self/fd/${r%,*}"
        done = js.run(["sh", "-c", script], style="pipe", preexec_fn=lambda: None)
        assert done.returncode == 0


# share


def test_each_share_has_a_slot() -> None:
    with Jobserver("fork", 2) as js:
        with js.share() as first, js.share() as second:
            assert first.pass_fds != second.pass_fds
            with pytest.raises(Blocked):
                js.submit(add, args=(1, 2), timeout=0)
        futures = [js.submit(add, args=(1, 2), timeout=0) for _ in range(2)]
        assert [future.result() for future in futures] == [3, 3]


def test_a_forked_child_gives_back_nothing_that_is_its_parents(tmp_path: Path) -> None:
    js = Jobserver("fork", 1)
    leaving = contextlib.ExitStack()
    leaving.enter_context(js.share())
    pid = os.fork()
    if pid == 0:
        try:
            leaving.close()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(Blocked):
        js.submit(add, args=(1, 2), timeout=0)
    leaving.close()
    check_slots(js, 1, tmp_path / "check")


# Interrupts


def run_interrupted(stubborn: bool) -> None:
    """^C comes to a command and to this program, or to this program only."""
    js = Jobserver("fork", 1)
    script = "trap '' INT; echo; exec sleep 1000" if stubborn else "echo; exec sleep 1000"
    read, write = os.pipe()

    def interrupt() -> None:
        os.read(read, 1)
        os.killpg(0, signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    try:
        js.run(["sh", "-c", script], stdout=write)
    except KeyboardInterrupt:
        assert js.submit(add, args=(1, 2), timeout=0).result() == 3
        sys.stdout.write("interrupted")
    waiting.join()


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_ends_the_command_and_passes(stubborn: bool) -> None:
    assert run_program(run_interrupted, stubborn).stdout == "interrupted"
