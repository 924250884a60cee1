"""Feature maps taken from inside any model while it runs: where they are made, and what they must be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detkds.errors import ConfigError

_PLACE = re.compile(r"(?P<module>[^\[\]]*)(?P<keys>(?:\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class Tap:
    """One feature map of a model.

    Attributes:
        level: the name of the map.
        module: the path of the module that makes it, as in ``model.named_modules()``; empty for the model itself.
        keys: which part of the module's output it is: keys of mappings, indices of sequences, names of attributes.
        stride: pixels per cell.
        channels: of the map; None where they are still to be found out.
    """

    level: str
    module: str
    keys: tuple[str, ...]
    stride: float
    channels: int | None = None

    @property
    def place(self) -> str:
        """The module and the part of its output in the notation of :func:`parse_tap`."""
        return self.module + "".join(f"[{key}]" for key in self.keys)

    def read(self, outputs: Sequence[Any]) -> Tensor:
        """The map, from what the module gave in one pass.

        Raises:
            ConfigError: the module did not run exactly once, or this part of its output is no such map.
        """
        if len(outputs) != 1:
            often = f"runs {len(outputs)} times" if outputs else "does not run"
            raise ConfigError(
                f"features.{self.level}: module {self.module!r} {often} in one pass; name one that runs once"
            )
        value = outputs[0]
        for number, key in enumerate(self.keys):
            try:
                value = _part(value, key)
            except (LookupError, ValueError, AttributeError):
                where = self.module + "".join(f"[{parent}]" for parent in self.keys[:number])
                fault = f"there is no [{key}] in the output of {where!r}, which is {_described(value)}"
                raise ConfigError(f"features.{self.level}: {fault}") from None
        channels = self.channels or "C"
        if not isinstance(value, Tensor) or value.ndim != 4 or self.channels not in (None, value.shape[1]):
            hint = "" if isinstance(value, Tensor) else f"; name a part of it, such as {self.place}[0]"
            raise ConfigError(
                f"features.{self.level}: expected a map (N, {channels}, H, W) from {self.place!r}, "
                f"got {_described(value)}{hint}"
            )
        return value


def parse_tap(level: str, place: Any, model: nn.Module) -> Tap:
    """Read ``[place, stride]`` or ``[place, stride, channels]``.

    A place is the path of a module, where need be with the part of its output that is the map: ``neck``, ``neck[0]``,
    ``neck[p3]`` or ``neck[maps][0]``.

    Raises:
        ConfigError: it is not of this form, or the model has no such module.
    """
    parts = list(place) if isinstance(place, Sequence) and not isinstance(place, str) else []
    match = _PLACE.fullmatch(parts[0]) if parts and isinstance(parts[0], str) else None
    if match is None or len(parts) not in (2, 3) or not _is_number(parts[1]) or not _is_count(parts[-1], len(parts)):
        raise ConfigError(
            f"features.{level}: expected [module, stride] or [module, stride, channels], such as ['neck[0]', 8], "
            f"got {place!r}"
        )
    known = [name for name, _ in model.named_modules()]
    if match["module"] not in known:
        raise ConfigError(f"features.{level}: the model has no module {match['module']!r}; {_near(match, known)}")
    keys = tuple(re.findall(r"\[([^\[\]]+)\]", match["keys"]))
    return Tap(level, match["module"], keys, parts[1], parts[2] if len(parts) == 3 else None)


def run_and_read(
    model: nn.Module, taps: Sequence[Tap], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Tensor]]:
    """One pass of the model: its output, and ``{level: (N, C, H, W)}``.

    The hooks stand for the length of the pass alone, so that copies, wrappers and stored states of the model know
    nothing of them. A map that the model changes in place afterwards is read changed.

    Raises:
        ConfigError: a map cannot be read; see :meth:`Tap.read`.
    """
    outputs: dict[str, list[Any]] = {tap.module: [] for tap in taps}
    with ExitStack() as stack:
        for path, seen in outputs.items():
            handle = model.get_submodule(path).register_forward_hook(_keep_in(seen))
            stack.callback(handle.remove)
        raw = model(*args, **kwargs)
    return raw, {tap.level: tap.read(outputs[tap.module]) for tap in taps}


def _keep_in(seen: list[Any]) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output)

    return keep


def _part(value: Any, key: str) -> Any:
    number = int(key) if re.fullmatch(r"-?\d+", key) else None
    if isinstance(value, Mapping):
        return value[key] if key in value or number is None else value[number]
    if number is not None and isinstance(value, Sequence):
        return value[number]
    return getattr(value, key)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, value)) or '(none)'}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _near(match: re.Match[str], known: Sequence[str]) -> str:
    """The modules that may be meant: alike by name, or below the deepest module that the path shares."""
    path = match["module"]
    near = difflib.get_close_matches(path, known, n=5, cutoff=0.6)
    while not near and path:
        path = path.rpartition(".")[0]
        below = [name for name in known if name.rpartition(".")[0] == path and name]
        near = below if path in known else []
    return f"near: {', '.join(near[:10])}" if near else "it has none"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_count(value: Any, parts: int) -> bool:
    return parts == 2 or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
