"""MAKEFLAGS, read and written; make itself says how it quotes."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobserver.make import Descriptors, Fifo, NoJobserver, find_auth, find_jobs, with_auth
from tests import tools

SECONDS = 60.0  # for a make that only prints


@pytest.mark.parametrize(
    ("makeflags", "auth"),
    [
        (" -j4 --jobserver-auth=3,4", "3,4"),  # make 4.2 to 4.3, and others asked to
        (" -j --jobserver-fds=3,4", "3,4"),  # make until 4.1
        (" -j --jobserver-fds=3,4 --jobserver-auth=5,6", "5,6"),  # cargo
        ("kw -j4 --jobserver-auth=fifo:/tmp/GMfifo4711", "fifo:/tmp/GMfifo4711"),  # make 4.4
        (" --jobserver-auth=-2,-2 --jobserver-auth=fifo:/tmp/f", "fifo:/tmp/f"),
        ("--jobserver-auth=3,4", "3,4"),
        (" --jobserver-auth=3,4 -- --jobserver-auth=5,6", "3,4"),
        (" --jobserver-auth=3,4 -Ia\\ --jobserver-auth=5,6", "3,4"),
        (" --jobserver-auth=3,4 --eval=X:=1\\ \t--jobserver-auth=5,6 ", "5,6"),
        (" --jobserver-auth=fifo:/a\\ b\\\\c$$d", "fifo:/a b\\c$d"),
    ],
)
def test_the_last_jobserver_among_the_options_counts(makeflags: str, auth: str) -> None:
    assert str(find_auth(makeflags)) == auth


@pytest.mark.parametrize(
    ("makeflags", "reason"),
    [
        (None, "absent"),
        ("", "not a jobserver"),
        (" -j1", "not a jobserver"),
        ("n -j", "not a jobserver"),
        (" -- --jobserver-auth=3,4", "not a jobserver"),
        ("A=--jobserver-auth=3,4", "not a jobserver"),
        (" -Ia\\ --jobserver-auth=5,6", "not a jobserver"),
        (" --jobserver-auth", "not a jobserver"),
        (" --jobserver-auth=3,4 --jobserver-auth=", "malformed"),
        (" --jobserver-auth=fifo:", "malformed"),
        (" --jobserver-auth=3", "malformed"),
        (" --jobserver-auth=3,4,5", "malformed"),
        (" --jobserver-auth=a,b", "malformed"),
        (" --jobserver-auth=\u0663,4", "malformed"),  # an Arabic digit
        (f" --jobserver-auth={1 << 31},4", "malformed"),
        (f" --jobserver-auth=3,{'9' * 5000}", "malformed"),  # more digits than int() takes
        (f" --jobserver-auth=-{'9' * 5000},4", "malformed"),
        (" --jobserver-auth=gmake_semaphore_4711", "malformed"),
        (" --jobserver-auth=3,4 --jobserver-auth=-2,-2", "disabled"),
        (" --jobserver-auth=3,-1", "disabled"),
    ],
)
def test_a_reason_for_each_that_is_none(makeflags: Optional[str], reason: str) -> None:
    with pytest.raises(NoJobserver) as caught:
        find_auth(makeflags)
    assert caught.value.reason == reason


def test_the_error_says_what_why_and_how_to_mend_it() -> None:
    with pytest.raises(
        NoJobserver,
        match=r"switched its jobserver off here: '--jobserver-auth=-2,-2'; prefix .* \+",
    ) as caught:
        find_auth(" -j2 --jobserver-auth=-2,-2")
    told = NoJobserver("malformed", "what", "do this")
    assert str(pickle.loads(pickle.dumps(told))) == str(told) == "what; do this"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, copy.detail, str(copy)) == (
        caught.value.reason,
        caught.value.detail,
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("makeflags", "jobs"),
    [
        (None, None),
        ("", None),
        (" -j", None),
        (" -j4 --jobserver-auth=3,4", 4),
        ("kj3", 3),
        (" -kj3", 3),
        (" --jobs=12", 12),
        (" -j2 -j", None),
        (" -j 8", 8),
        ("kj 8 --jobserver-auth=3,4", 8),
        (" --jobs 8 -k", 8),
        (" -j -k 8", None),
        (" -j4 8", 4),
        (" -j -- 8", None),
        (f" -j{'9' * 5000}", None),
        (f" -j4 -j {1 << 40}", None),
        (" -j\u0663", None),
        (" -j2 -j5", 5),
        (" -Ij4", None),
        (" -- -j4", None),
    ],
)
def test_the_last_number_of_jobs_counts(makeflags: Optional[str], jobs: Optional[int]) -> None:
    assert find_jobs(makeflags) == jobs


@pytest.mark.parametrize(
    ("makeflags", "without"),
    [
        ("", ""),
        ("kw -j4 --jobserver-auth=3,4 --no-print-directory", "kw --no-print-directory"),
        ("kj4 --jobserver-fds=3,4", "-k"),
        (" -j --jobs=3 --jobs", ""),
        ("kj 8 -j 9 10 -j -w 11", "-k 10 -w 11"),
        (" -j -- 8", "-- 8"),
        (
            " -Ia\\ -j4 -j4 -- A=-j4\\ -j4 --jobserver-auth=5,6",
            "-Ia\\ -j4 -- A=-j4\\ -j4 --jobserver-auth=5,6",
        ),
    ],
)
def test_another_jobserver_takes_the_place_of_the_one_named(makeflags: str, without: str) -> None:
    assert with_auth(makeflags) == without
    options, dashes, rest = without.partition("-- ")
    for auth in Descriptors(8, 9), Fifo("/tmp/f"):
        expected = [*options.split(), f"--jobserver-auth={auth}", *(dashes + rest).split()]
        assert with_auth(makeflags, auth).split() == expected
        assert find_auth(with_auth(makeflags, auth)) == auth


WORDS = st.text(alphabet="-jkA=fo:,3 \t\\$\"'#\u00e9", max_size=12)
AUTHS = st.sampled_from([Descriptors(3, 4), Fifo("/tmp/f")])
DECOYS = st.sampled_from([" --jobserver-auth=7,8", "--jobserver-fds=7,8", " -- ", "\\ -j9 "])


@given(st.lists(st.one_of(WORDS, DECOYS)).map(" ".join))
@settings(max_examples=1000, deadline=None)
def test_whatever_makeflags_says_it_is_read_or_refused(makeflags: str) -> None:
    with contextlib.suppress(NoJobserver):
        find_auth(makeflags)
    find_jobs(makeflags)
    with pytest.raises(NoJobserver, match="names no jobserver"):
        find_auth(with_auth(makeflags))
    assert find_auth(with_auth(makeflags, Fifo("/tmp/f"))) == Fifo("/tmp/f")


@pytest.mark.parametrize("name", tools.MAKES)
def test_make_is_not_fooled_and_neither_are_we(name: str, tmp_path: Path) -> None:
    """A thousand variables with decoys in them, quoted by make itself, in makes of fifty each."""
    make = tools.need(name)
    makefile = tmp_path / "Makefile"
    show = "import os, sys; sys.stdout.buffer.write(os.environb[b'MAKEFLAGS'])"
    makefile.write_text(f"all:\n\t+@'{sys.executable}' -c \"{show}\"\n")

    @given(
        st.lists(st.one_of(WORDS, DECOYS).map(lambda text: text.replace("$", "$$")), min_size=50)
    )
    @settings(max_examples=20, deadline=None)
    def fuzz(values: list[str]) -> None:
        variables = [f"V{number}={value}" for number, value in enumerate(values)]
        shown = subprocess.run(
            [make, "-s", "-f", str(makefile), "-j3", *variables],
            env={"PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=SECONDS,
            check=True,
        )
        makeflags = shown.stdout.decode()
        # What stands before the variables is make's own, and has no decoy in it.
        assert str(find_auth(makeflags)) in makeflags.partition(" -- ")[0]
        assert find_jobs(makeflags) == 3

    fuzz()
