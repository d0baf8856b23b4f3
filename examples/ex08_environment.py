"""Environment: give workers variables that the parent does not have.

`revise_env` returns a new handle on the same slots. Its workers find the revisions in their
`os.environ` before anything else happens there, so that even what is read at import time, such as
a numeric library's number of threads, can be set. None unsets a name, later revisions win, and the
handle from which it was made stays as it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import Optional

from jobserver import Jobserver

NAMES = ("OMP_NUM_THREADS", "EXAMPLE_STAGE", "HOME")


def environment() -> list[Optional[str]]:
    """The variables as work sees them."""
    return [os.environ.get(name) for name in NAMES]


def environment_of_a_program() -> str:
    """One of the variables as a program that the work starts sees it."""
    code = "import os; print(os.environ['EXAMPLE_STAGE'])"
    return subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


def main() -> None:
    before = dict(os.environ)
    with Jobserver(slots=2) as js:
        plain = js(environment).result()

        # One thread for each worker's numeric library: the slots are what runs in parallel.
        single = js.revise_env({"OMP_NUM_THREADS": "1"})
        assert single(environment).result() == ["1", *plain[1:]]

        # Revisions add up; pairs do as well as a mapping; None unsets.
        staged = single.revise_env([("EXAMPLE_STAGE", "test"), ("HOME", None)])
        assert staged(environment).result() == ["1", "test", None]
        assert staged(environment_of_a_program).result() == "test"
        assert staged.revise_env({"EXAMPLE_STAGE": "live"})(environment).result()[1] == "live"

        # Neither the handles before it nor this process have changed.
        assert single(environment).result() == ["1", *plain[1:]]
        assert js(environment).result() == plain
        assert dict(os.environ) == before

        # What os.environ would refuse is refused here, and at once.
        for name in ("", "A=B", "A\0"):
            with suppress(ValueError):
                js.revise_env({name: "value"})
                raise AssertionError(f"{name!r} was taken for a name")

        for name, value in zip(NAMES, staged(environment).result()):
            print(name, "is unset" if value is None else f"= {value}")


if __name__ == "__main__":
    main()
