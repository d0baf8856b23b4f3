"""The mutants that no test finds, and why that is well: they are equivalent, or harmless."""

from __future__ import annotations

from typing import Protocol

import attrs


class Change(Protocol):
    """A mutant, by what can be said of it without line numbers."""

    @property
    def module(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def was(self) -> tuple[str, ...]: ...
    @property
    def becomes(self) -> tuple[str, ...]: ...


@attrs.frozen
class Accepted:
    """Lines of a function (of several: joined by newlines), and what they may become."""

    module: str
    function: str
    was: str
    becomes: tuple[str, ...]
    reason: str

    def covers(self, mutant: Change) -> bool:
        return (self.module, self.function, self.was) == (
            mutant.module,
            mutant.function,
            "\n".join(mutant.was),
        ) and "\n".join(mutant.becomes) in self.becomes


ACCEPTED: tuple[Accepted, ...] = ()
