from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

class Operator(ABC):
    @abstractmethod
    def mutation_positions(
        self, node: Any
    ) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]: ...
    @abstractmethod
    def mutate(self, node: Any, index: int) -> Any: ...
    @classmethod
    @abstractmethod
    def examples(cls) -> Iterable[object]: ...
