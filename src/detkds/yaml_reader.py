"""Reading YAML as plain data with the line of every value; whatever cannot be read is a fault with its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detkds.errors import UserError

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null"))
_DEEPEST = 50
_MOST_VALUES = 100_000
_INT_LIMIT = 2**63
_TOO_DEEP = f"values are nested deeper than {_DEEPEST}"


@dataclass(frozen=True)
class Lines:
    """Where the values of a file stand.

    Attributes:
        where: what messages call the file.
        lines: the line, counted from 1, by the keys and indices that lead to a value.
    """

    where: str
    lines: Mapping[tuple[Any, ...], int]

    def at(self, *path: Any) -> str:
        """``file:line`` of a value, or of the nearest one that it would stand in."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.where}:{self.lines[path]}" if path in self.lines else self.where


def read_yaml(path: str | Path, error: type[UserError] = UserError) -> tuple[Any, Lines]:
    """The data of a YAML file in UTF-8, and the lines it stands in; see :func:`parse_yaml`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path}: cannot be read: {_one_line(reason)}") from None
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, where: str, error: type[UserError] = UserError) -> tuple[Any, Lines]:
    """The data of a YAML text: mappings with plain keys, lists, text, numbers, booleans and null. Dates stay text.

    Args:
        where: how messages call the source.
        error: what is raised.

    Raises:
        UserError: the text is no YAML, holds a tag, a key twice, a whole number beyond 64 bits, nests deeper than 50
            values or stands, through its aliases, for more than 100,000.
    """
    try:
        reader = _Reader(_Loader(text))
        root = reader.loader.get_single_node()
        data = reader.value(root, ()) if root is not None else None
    except _LimitError as reason:
        raise error(f"{where}:{reason.args[1]}: {reason.args[0]}") from None
    except yaml.MarkedYAMLError as reason:
        line = f":{reason.problem_mark.line + 1}" if reason.problem_mark is not None else ""
        raise error(f"{where}{line}: not valid YAML: {reason.problem}") from None
    except yaml.YAMLError as reason:
        raise error(f"{where}: not valid YAML: {_one_line(reason)}") from None
    if reader.faults:
        raise error(f"{where}:{line}: {fault}" for line, fault in reader.faults)
    return data, Lines(where, reader.lines)


class _LimitError(Exception):
    """What is wrong, and the line."""


class _Loader(yaml.SafeLoader):
    """Composes nodes: dates are text, and no node lies deeper than a recursive reader can follow."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _LimitError(_TOO_DEEP, self.peek_event().start_mark.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class _Reader:
    """Makes data of nodes, an alias as often as it is used."""

    loader: _Loader
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0

    def value(self, node: yaml.Node, path: tuple[Any, ...]) -> Any:
        self.count += 1
        self.lines.setdefault(path, _line(node))
        if self.count > _MOST_VALUES:
            raise _LimitError(f"the file stands for more than {_MOST_VALUES} values, aliases written out", _line(node))
        if len(path) > _DEEPEST:
            raise _LimitError(_TOO_DEEP, _line(node))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: tuple[Any, ...]) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                bases = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for base in reversed(bases):  # the first has the last word
                    data = self.value(base, path)
                    if isinstance(data, dict):
                        merged |= data
                    else:
                        self._fault(value_node, "<<: expected a mapping or a list of mappings")
        own: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self._scalar(key_node)
            if key in own:
                self._fault(key_node, f"key {key!r} is given twice")
                continue
            self.lines[*path, key] = _line(key_node)
            own[key] = self.value(value_node, (*path, key))
        return merged | own

    def _scalar(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            self._fault(node, f"expected plain data or a plain key, got {node.tag.removeprefix(_TAG)}")
            return None
        try:
            value = self.loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            self._fault(node, f"cannot be read as {node.tag.removeprefix(_TAG)}: {node.value[:40]!r}")
            return None
        if isinstance(value, int) and abs(value) >= _INT_LIMIT:
            self._fault(node, f"expected a whole number of 64 bits, got one of {len(node.value)} digits")
        return value

    def _fault(self, node: yaml.Node, fault: str) -> None:
        self.faults.append((_line(node), fault))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
