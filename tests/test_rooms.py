"""The house: what each room may import, how little a worker imports, and where it all imports."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobserver

PACKAGE = Path(jobserver.__file__).resolve().parent
ROOT = str(PACKAGE.parent)
SECONDS = 60.0  # for a program that only imports

# Each room imports only from rooms above it.
ROOMS = (
    "__init__",
    "errors",
    "memory",
    "tracebacks",
    "hints",
    "descriptors",
    "pickles",
    "wire",
    "signals",
    "worker",
    "serving",
    "protocols",
    "interrupts",
    "pauses",
    "forks",
    "parcels",
    "cpus",
    "credentials",
    "make",
    "environment",
    "ancestors",
    "settings",
    "chunks",
    "lifecycle",
    "fifos",
    "kernel",
    "slots",
    "joined",
    "poller",
    "channel",
    "run",
    "shared_tracker",
    "bootstrap",
    "program",
    "forkservers",
    "launch",
    "forker",
    "waits",
    "engine",
    "waiting",
    "sigterm",
    "crew",
    "origin",
    "callbacks",
    "draining",
    "future",
    "resources",
    "mapping",
    "sharing",
    "commands",
    "server",
    "loops",
    "lending",
    "awaiting",
    "series",
    "finishing",
    "dispatch",
    "executor",
    "hosting",
    "own_jobs",
    "__main__",
)

# What other platforms lack, of that which a program on Linux might reach for.
ABSENT = {
    "win32": {
        "modules": "fcntl grp multiprocessing.forkserver pwd resource termios",
        "multiprocessing.reduction": "DupFd recv_handle recvfds send_handle sendfds",
        "os": """O_CLOEXEC O_NONBLOCK WEXITED WNOHANG WNOWAIT eventfd fork forkpty getpgid getsid
            getuid killpg memfd_create mkfifo pidfd_open pipe2 posix_spawn pread pwrite
            register_at_fork sched_getaffinity sched_yield setpgid setsid splice sysconf uname
            wait wait3 wait4 waitid writev""",
        "select": "PIPE_BUF epoll kqueue poll",
        "signal": """ITIMER_REAL SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGSTOP SIGTSTP
            SIGUSR1 SIGUSR2 SIG_BLOCK SIG_SETMASK SIG_UNBLOCK alarm pidfd_send_signal pthread_kill
            pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo""",
        "socket": "AF_UNIX CMSG_LEN CMSG_SPACE SCM_RIGHTS recv_fds send_fds",
    },
    "darwin": {
        "modules": "",
        "os": """eventfd memfd_create pidfd_open pipe2 posix_fallocate sched_getaffinity
            sched_setaffinity splice waitid""",
        "select": "epoll",
        "signal": "pidfd_send_signal sigtimedwait sigwaitinfo",
    },
}

# Everything of the standard library that the rooms use is imported first, as it stands: what is
# asked is whether the rooms would import, not whether this platform's library would on another.
IMPORT_ON_ANOTHER_PLATFORM = """
import importlib, json, sys
platform, absent, first, rooms = json.loads(sys.argv[1])
for name in first:
    importlib.import_module(name)
for name in absent.pop("modules").split():
    sys.modules[name] = None
for module, names in absent.items():
    for name in names.split():
        vars(sys.modules[module]).pop(name, None)
sys.platform = platform
for room in rooms:
    importlib.import_module("jobserver" if room == "__init__" else "jobserver." + room)
"""


def room_path(room: str) -> Path:
    return PACKAGE / f"{room}.py"


def imports_of(room: str) -> tuple[set[str], set[str]]:
    """The rooms and the other modules that a room imports anywhere, functions included."""
    rooms: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(room_path(room).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{room} reaches out of the package in line {node.lineno}"
            rooms.update([node.module] if node.module else [alias.name for alias in node.names])
    return rooms, others - {"__future__"}


def python(source: str, *arguments: str) -> str:
    """What a program prints that runs in an interpreter of its own, with this checkout first."""
    process = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {ROOT!r})\n{source}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def imported_by(statement: str) -> set[str]:
    """The modules that a statement brings into a fresh interpreter."""
    source = f"before = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    return set(python(source).split())


def test_every_room_has_its_place() -> None:
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ROOMS)
    assert [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()] == [
        "testing"  # which may import from every room, and from which none does
    ]


@pytest.mark.parametrize("room", ROOMS[1:])  # the first one imports lazily: see below
def test_imports_only_from_rooms_above(room: str) -> None:
    rooms, _ = imports_of(room)
    assert rooms <= set(ROOMS[: ROOMS.index(room)])


@pytest.mark.parametrize("room", ROOMS[1:])
def test_imports_nothing_by_a_computed_name(room: str) -> None:
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse(room_path(room).read_text(encoding="utf-8")))
        if isinstance(node, (ast.Attribute, ast.Name))
    }
    assert not names & {"import_module", "__import__"}


def test_the_worker_imports_few_rooms_and_the_standard_library() -> None:
    # `memory` only for a large value: see the next test.
    rooms, others = imports_of("worker")
    few = {"descriptors", "errors", "memory", "pickles", "signals", "tracebacks", "wire"}
    assert rooms <= few
    for room in rooms:
        below, besides = imports_of(room)
        assert below <= few
        others |= besides
    source = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    # Without site-packages there is nothing but the standard library to be found.
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", source, *sorted(others)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_the_worker_imports_next_to_nothing() -> None:
    modules = imported_by("import jobserver.worker")
    assert {"jobserver", "jobserver.worker"} <= modules
    ours = {name for name in modules if name.partition(".")[0] == "jobserver"}
    few = {"descriptors", "errors", "pickles", "signals", "tracebacks", "wire", "worker"}
    assert ours <= {"jobserver", *("jobserver." + room for room in few)}
    dear = {"asyncio", "attr", "attrs", "concurrent.futures", "dataclasses", "inspect", "logging"}
    assert not modules & {*dear, "multiprocessing.pool", "subprocess", "tempfile", "typing"}


def test_the_package_imports_nothing_before_it_is_used() -> None:
    ours = {name for name in imported_by("import jobserver") if name.startswith("jobserver")}
    assert ours == {"jobserver"}
    assert "attr" not in imported_by("import jobserver")
    assert "attr" in imported_by("from jobserver import Jobserver")


def test_no_room_imports_what_is_for_type_checkers_only() -> None:
    rooms = ", ".join(f"jobserver.{room}" for room in ROOMS[1:])
    assert "typing_extensions" not in imported_by(f"import {rooms}")


def test_doubles_need_no_hypothesis() -> None:
    assert "hypothesis" not in imported_by(
        "import jobserver.testing.doubles, jobserver.testing.model"
    )


@pytest.mark.parametrize("platform", ABSENT)
def test_every_room_imports_where_there_is_less(platform: str) -> None:
    absent = ABSENT[platform]
    used = {"attrs", "attr", *absent} - {"modules"}
    for room in ROOMS:
        used |= imports_of(room)[1]
    first = sorted(
        name for name in used - set(absent["modules"].split()) if importlib.util.find_spec(name)
    )
    python(IMPORT_ON_ANOTHER_PLATFORM, json.dumps([platform, absent, first, ROOMS]))
