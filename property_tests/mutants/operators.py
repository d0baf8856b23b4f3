"""The mutations that are tried: those of Cosmic Ray that count, and four kinds of our own.

Cosmic Ray changes operators, numbers, keywords, handlers, loops and decorators. It leaves alone
what this library is made of: statements in a certain order, and tables. So here statements are
deleted, elements of displays and keyword arguments dropped, and members of enumerations replaced.

Of Cosmic Ray's replacements of one operator only those are tried that could have been meant: an
arithmetic operator by its opposite, a comparison by its boundary and its negation. The rest (`is`
by `<`, `-` by `**`) raise TypeError at once, which would make any score look well.

Annotations, overloads, docstrings and the texts of messages are left as they are.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, ClassVar

from cosmic_ray.ast import get_ast
from cosmic_ray.operators.operator import Operator

from jobserver import lifecycle

_OPPOSITES = {
    "ReplaceBinaryOperator": {"Add_Sub", "Sub_Add", "Mul_Div", "Mod_Mul", "LShift_RShift"},
    "ReplaceComparisonOperator": {
        *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
        *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
    },
    "ReplaceUnaryOperator": {"Delete_Not", "USub_UAdd"},
}

Position = tuple[tuple[int, int], tuple[int, int]]


def counts(operator: str) -> bool:
    """Whether mutations of this name ("provider/Class_From_To") are tried."""
    kind, _, replacement = operator.partition("/")[2].partition("_")
    return kind not in _OPPOSITES or replacement in _OPPOSITES[kind]


def _code(node: Any) -> str:
    return str(node.get_code(include_prefix=False))


def _parsed(code: str, instead_of: Any) -> Any:
    return get_ast(instead_of.get_first_leaf().prefix + code)


class _Ours(Operator):
    """An operator that says which variants of a node there are, as code."""

    def variants(self, node: Any) -> Iterator[str]:
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        for _ in self.variants(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return _parsed(list(self.variants(node))[index], node)

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class DeleteStatement(_Ours):
    """A statement of a function does not happen: `pass` is in its place."""

    def variants(self, node: Any) -> Iterator[str]:
        line = node.parent
        if line is None or line.type != "simple_stmt" or node is not line.children[0]:
            return
        if node.type in ("string", "strings", "import_from", "import_name", "newline"):
            return
        if _code(node) not in ("pass", "...") and node.search_ancestor("funcdef"):
            yield "pass"


class ChangeDisplay(_Ours):
    """An element of a tuple, list or dict in brackets is dropped; effects also trade places."""

    def variants(self, node: Any) -> Iterator[str]:
        if node.type != "atom" or len(node.children) != 3:
            return
        start, inside, stop = node.children
        if inside.type not in ("testlist_comp", "dictorsetmaker"):
            return
        elements = self._elements(inside)
        for index in range(len(elements)):
            yield self._display(start, [*elements[:index], *elements[index + 1 :]], stop)
        if not all(element.startswith("Effect.") for element in elements):
            return  # elsewhere it is often the same in any order
        for index, (this, following) in enumerate(zip(elements, elements[1:])):
            swapped = [*elements[:index], following, this, *elements[index + 2 :]]
            yield self._display(start, swapped, stop)

    def _elements(self, inside: Any) -> list[str]:
        if any(child.type in ("comp_for", "sync_comp_for") for child in inside.children):
            return []
        elements = [""]
        for child in inside.children:
            if _code(child) == ",":
                elements.append("")
            else:
                elements[-1] += _code(child)
        return [element for element in elements if element]

    def _display(self, start: Any, elements: list[str], stop: Any) -> str:
        # One element is a tuple only with a comma behind it; none must not have one.
        inside = "".join(f"{element}, " for element in elements)
        return f"{start.value}{inside}{stop.value}"


class DropKeyword(_Ours):
    """A keyword argument of a call is left out, so that its default counts."""

    def variants(self, node: Any) -> Iterator[str]:
        if node.type != "arglist":
            return
        arguments = [child for child in node.children if _code(child) != ","]
        for index, argument in enumerate(arguments):
            if argument.type == "argument" and _code(argument.children[1]) == "=":
                yield ", ".join(map(_code, [*arguments[:index], *arguments[index + 1 :]]))


class ReplaceMember(_Ours):
    """Another member of the same enumeration of the lifecycle: the next."""

    following: ClassVar[dict[str, str]] = {
        f"{kind.__name__}.{this.name}": f"{kind.__name__}.{after.name}"
        for kind in vars(lifecycle).values()
        if isinstance(kind, type) and issubclass(kind, enum.Enum)
        for this, after in zip(kind, [*list(kind)[1:], *list(kind)[:1]])
    }

    def variants(self, node: Any) -> Iterator[str]:
        if node.type in ("power", "atom_expr"):
            name, dot, rest = _code(node).partition(".")
            member, _, attribute = rest.partition(".")
            other = self.following.get(f"{name}{dot}{member}")
            if other is not None:
                yield ".".join(filter(None, (other, attribute)))


class Provider:
    """Our operators by name, as Cosmic Ray asks for them."""

    _operators: ClassVar = {
        each.__name__: each for each in (DeleteStatement, ChangeDisplay, DropKeyword, ReplaceMember)
    }

    def __iter__(self) -> Iterator[str]:
        return iter(self._operators)

    def __getitem__(self, name: str) -> type[Operator]:
        return self._operators[name]
