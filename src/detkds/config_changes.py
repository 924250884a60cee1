"""What differs between two configurations, and what that means for a run that has begun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from detkds.config import Effect, RunConfig, Section


@dataclass(frozen=True)
class Change:
    """A field whose value differs between two configurations; ``key`` is dotted."""

    key: str
    before: Any
    now: Any
    effect: Effect


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two configurations as plain data, field by field; absent fields count as their defaults."""
    return list(_changes(RunConfig, before, now, ""))


def _changes(section: type[Section], before: Any, now: Any, prefix: str) -> Iterator[Change]:
    for name, field in section.model_fields.items():
        before_value, now_value = (_value(side, name, field.get_default()) for side in (before, now))
        if before_value == now_value:
            continue
        inner = _section(field.annotation)
        if inner is not None and isinstance(before_value, Mapping) and isinstance(now_value, Mapping):
            yield from _changes(inner, before_value, now_value, f"{prefix}{name}.")
        else:
            yield Change(prefix + name, before_value, now_value, effect_of(section, name))


def effect_of(section: type[Section], name: str) -> Effect:
    """What a change of a field means; a section that is there on one side alone is another experiment."""
    extra = section.model_fields[name].json_schema_extra
    return extra["effect"] if isinstance(extra, dict) else "numbers"  # type: ignore[return-value]


def _value(data: Any, name: str, default: Any) -> Any:
    value = data.get(name, default) if isinstance(data, Mapping) else default
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _section(annotation: Any) -> type[Section] | None:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)
