"""Where an executor's workers come from: the process as it was when the executor was first used."""

from __future__ import annotations

from multiprocessing.context import BaseContext
from typing import Final, Optional

import attrs

from . import credentials, pauses, program, worker
from .crew import Crew
from .engine import Engine
from .forker import Forker
from .interrupts import shielded
from .launch import ContextLauncher
from .settings import Settings


class Origin:
    """The workers of one executor, and what starts them."""

    def __init__(self, engine: Engine, context: BaseContext, settings: Settings) -> None:
        """Workers see the process as it is now. Forks under start method fork."""
        # Those of the thread that submits: the executor's thread may have others.
        self.credentials: Final = credentials.current()
        self._forker: Optional[Forker] = None
        if context.get_start_method() == "fork":
            pauses.alone(lambda: self._fork(settings))
            assert self._forker is not None, "it has been forked just now"
            launcher = self._forker
            if settings.preexec is not None:
                settings = attrs.evolve(settings, preexec=worker.Carried())
        else:
            # The thread may start a worker when the main script has ended.
            launcher = ContextLauncher(context, program.current())
        self.settings: Final = settings
        # Its own: nobody else's work is to come after its initializer.
        self.crew: Final = Crew(engine, launcher, read_credentials=lambda: None)

    def _fork(self, settings: Settings) -> None:
        with shielded():
            self._forker = Forker(settings.preexec)

    def retire(self) -> None:
        """Start nothing more. What runs goes on; `close` is to follow once that is over."""
        try:
            self.crew.close()
        finally:
            if self._forker is not None:
                self._forker.retire()

    def close(self) -> None:
        """End the workers, which have nothing to do any more, and what forks them."""
        try:
            self.crew.close()
        finally:
            if self._forker is not None:
                self._forker.close()
