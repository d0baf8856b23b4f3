"""Memory that the package called jobserver takes in the parent."""

from __future__ import annotations

import itertools
import resource
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rounds import SLOTS, Round, Samples
from work import nothing

from jobserver import Jobserver


@contextmanager
def long_map(marks: list[int]) -> Generator[Round]:
    """The parent's peak, in kibibytes, after so many submissions through a bounded `map`."""
    with Jobserver(context="fork", slots=SLOTS) as server:

        def one_round() -> Samples:
            peaks: Samples = {}
            results = server.map(fn=nothing, argses=itertools.repeat((), marks[-1]), buffersize=8)
            for number, _ in enumerate(results, start=1):
                if number in marks:
                    peaks[str(number)] = [_peak()]
            return peaks

        yield one_round


def _peak() -> float:
    """The peak resident size of this process, which on Linux is told apart from its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1024 if sys.platform == "darwin" else peak
    return float(status.partition("VmHWM:")[2].split()[0])
