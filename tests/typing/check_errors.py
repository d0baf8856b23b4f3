"""The exceptions: final, with the attributes that they promise."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from typing import Optional

from typing_extensions import assert_type

import jobserver
from jobserver import Blocked, CallbackRaised, LostResult, NoJobserver
from jobserver.make import Reason


class MyBlocked(Blocked):  # type: ignore[misc]
    pass


class MyCallbackRaised(CallbackRaised):  # type: ignore[misc]
    pass


class MyLostResult(LostResult):  # type: ignore[misc]
    pass


def attributes(lost: LostResult, raised: CallbackRaised, none: NoJobserver) -> None:
    assert_type(lost.pid, Optional[int])
    assert_type(lost.exitcode, Optional[int])
    assert_type(raised.seqno, int)
    assert_type(none.detail, str)
    assert_type(none.reason, Reason)
    assert_type(CallbackRaised(seqno=1), CallbackRaised)
    CallbackRaised("1")  # type: ignore[arg-type]
    CallbackRaised()  # type: ignore[call-arg]


def are_exceptions() -> list[type[Exception]]:
    return [Blocked, CallbackRaised, LostResult, NoJobserver]


assert_type(jobserver.__version__, str)
