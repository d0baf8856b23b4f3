"""Arguments that are larger than a file may be (`ulimit -f`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.executor_help import run_script

PROGRAM = """
import array, multiprocessing, os, resource, signal, sys
from concurrent.futures import ProcessPoolExecutor
from jobserver import Jobserver, JobserverExecutor, LostResult

LARGE = 2 << 20
ARGUMENTS = b"x" * LARGE, array.array("b", bytes(LARGE)), "y" * LARGE

def same(*values):
    return values == ARGUMENTS

if __name__ == "__main__":
    face, method = sys.argv[1:]
    context = multiprocessing.get_context(method)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    if face == "peer":
        pool = ProcessPoolExecutor(1, context)
    elif face == "owning":
        pool = JobserverExecutor(1, context)
    else:
        pool = Jobserver(context, 1)
    if face == "reused":
        pool = pool.replace_workers()
    elif face == "sharing":
        pool = JobserverExecutor(pool)
    with pool:
        submit = pool.submit if face in ("peer", "owning", "sharing") else pool
        open_files = []
        for _ in range(2):
            assert submit(same, *ARGUMENTS).result() is True
            open_files.append(len(os.listdir("/proc/self/fd")) if face == "fresh" else 0)
        assert open_files[0] == open_files[1]
        if face == "fresh" and method != "fork":
            # A worker that ends before it has read all.
            dying = pool.replace_preexec(os.abort)
            try:
                dying(same, *ARGUMENTS).result()
            except LostResult as lost:
                assert lost.exitcode == -signal.SIGABRT
            else:
                raise AssertionError("it has a result")
    print("same")
"""


@pytest.mark.parametrize("face", ["fresh", "reused", "owning", "sharing", "peer"])
def test_an_argument_larger_than_a_file_may_be_arrives(
    face: str, method: str, tmp_path: Path
) -> None:
    pytest.importorskip("resource")
    ended = run_script(tmp_path, PROGRAM, face, method)
    assert ended.stdout == "same\n", ended.stderr
