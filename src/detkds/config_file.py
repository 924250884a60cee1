"""Reading a configuration: a YAML file and overrides, checked as a whole before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from detkds.config import RunConfig
from detkds.errors import ConfigError, Faults, UserError, unknown_name
from detkds.yaml_reader import parse_yaml, read_yaml


class SchemaError(ConfigError):
    """Faults found by the schema; ``sound`` is the rest, with defaults in their place, where that is possible."""

    def __init__(self, faults: Iterable[str], sound: RunConfig | None = None) -> None:
        super().__init__(faults)
        self.sound = sound


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a configuration file and apply ``key.sub=value`` overrides, whose values are YAML.

    Relative data paths are taken from the working folder.

    Raises:
        ConfigError: listing every fault.
    """
    data, _ = read_yaml(path, ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(RunConfig.model_fields)}")
    return parse_config(apply_overrides(data, overrides), str(path))


def parse_config(data: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """Check plain data against the schema.

    Raises:
        ConfigError: listing every fault, each with the path of its key.
    """
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise SchemaError(_lines(error, where), _without_faults(data, error)) from None


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set ``a.b=value`` in nested plain data, without changing ``data``.

    Raises:
        ConfigError: an override is not ``key=value``, its value is not YAML, or its key leads through a plain value.
    """
    result = copy.deepcopy(dict(data))
    faults = Faults("override")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.add(f"expected key=value, such as train.lr=0.02, got {override!r}")
            continue
        try:
            value, _ = parse_yaml(text, repr(override))
        except UserError as error:
            faults.add(error)
            continue
        node, *path = result, *key.split(".")
        for part in path[:-1]:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
            if not isinstance(node, dict):
                faults.add(f"{override!r}: {part!r} is a plain value and has no keys")
                break
        else:
            node[path[-1]] = value
    faults.raise_as(ConfigError)
    return result


def _lines(error: ValidationError, where: str) -> list[str]:
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: {path}: {unknown_name('key', fault['loc'][-1], _known_keys(fault['loc'][:-1]))}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            message = message[0].lower() + message[1:]
            got = "" if fault["type"] == "missing" else f", got {fault['input']!r}"
            lines.append(f"{where}: {path}: {message}{got}")
    return lines


def _without_faults(data: Mapping[str, Any], error: ValidationError) -> RunConfig | None:
    rest = copy.deepcopy(dict(data))
    for fault in error.errors():
        node: Any = rest
        for part in fault["loc"][:-1]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(fault["loc"][-1], None)
    try:
        return RunConfig.model_validate(rest)
    except ValidationError:
        return None


def _known_keys(path: Iterable[Any]) -> list[str]:
    model: Any = RunConfig
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(getattr(model, "model_fields", {}))
