from collections.abc import Iterator
from typing import Protocol

from cosmic_ray.operators.operator import Operator

class Provider(Protocol):
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, name: str, /) -> type[Operator]: ...

OPERATOR_PROVIDERS: dict[str, Provider]

def get_operator(name: str) -> type[Operator]: ...
