"""YAML as people mean it: `1e-4` is a number, `no` is a word, a key counts once, and nothing is expanded.

PyYAML alone reads `1e-4` as text and `no` as False, lets the last of two equal keys win, and unfolds aliases without
limit. Here scalars follow YAML 1.2's core schema, equal keys are faults, anchors and aliases are refused, and whatever
a value cannot be made of is a fault with its place.
"""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dcae_core.errors import RecipeError

_MAX_BYTES = 1_000_000
_MAX_INTEGER = 1 << 63  # beyond it no setting means anything, and other libraries no longer count along


class _Loader(yaml.SafeLoader):
    """Reads one document and collects the faults that do not keep it from reading on."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: list[str] = []

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor}: aliases are not allowed in recipes; write the value out",
                problem_mark=event.start_mark,
            )
        node = super().compose_node(parent, index)
        if isinstance(node, ScalarNode) and any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise yaml.MarkedYAMLError(problem="half of a character", problem_mark=node.start_mark)
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=True)  # what is put off would fail elsewhere
        except (ValueError, TypeError, KeyError, AttributeError, LookupError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{_shorten(node.value)} cannot be read as {kind}", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None:
                raise yaml.MarkedYAMLError(problem="a key must be a single word", problem_mark=key_node.start_mark)
            if key in seen:
                self.faults.append(f"line {line}: the key '{key}' stands here and on line {seen[key]}; keep one")
            seen[key] = line
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolve(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+0123456789.",
)
_resolve("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers.pop("\0")


def _shorten(value: object) -> str:
    text = repr(value) if isinstance(value, str) else "what stands here"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _construct_int(loader: _Loader, node: ScalarNode) -> int:
    value = int(node.value)
    if abs(value) >= _MAX_INTEGER:
        raise ValueError("too large")
    return value


def _construct_float(loader: _Loader, node: ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml(text: str, source: str) -> tuple[Any, list[str]]:
    """Read one YAML document; return it and the faults found on the way (keys that stand twice).

    `source` is where it comes from, for messages.

    Raises:
        RecipeError: it is not one YAML document, is too large or too deep, or uses tags or aliases.
    """
    if len(text) > _MAX_BYTES:
        raise RecipeError(f"{source}: larger than {_MAX_BYTES // 1000} kB; this cannot be a recipe")
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not a readable recipe: {' '.join(str(error).split())}") from error
    try:
        document = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{source}{where}: not a readable recipe: {error.problem or error.context}") from error
    except ValueError as error:  # an escape sequence that is no character
        line = loader.get_mark().line + 1
        raise RecipeError(f"{source}, line {line}: not a readable recipe: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{source}: nested too deeply; this cannot be a recipe") from error
    return document, loader.faults


class Lines:
    """Where in a text that `read_yaml` has read which value stands. Costs one more parse."""

    def __init__(self, text: str) -> None:
        self._root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def of(self, path: str) -> int | None:
        """The line of `phases.0.steps`, counted from 1; None where there is no such value."""
        node, line = self._root, None
        for name in path.split("."):
            if isinstance(node, MappingNode):
                found = [(key, value) for key, value in node.value if key.value == name]
            elif isinstance(node, SequenceNode) and name.isdecimal():
                found = [(value, value) for value in node.value[int(name) : int(name) + 1]]
            else:
                found = []
            if not found:
                return None
            place, node = found[0]
            line = place.start_mark.line + 1
        return line
