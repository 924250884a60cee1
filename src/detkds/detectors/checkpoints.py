"""Files of weights: named tensors from what training scripts save, without running anything that is in them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import types
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import safetensors.torch
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from detkds.errors import WeightsError

AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "model_ema_state_dict", "state_dict_ema")
"""Under which keys training scripts keep the moving average of the weights, which is then what they evaluate."""
MODELS = ("state_dict", "model_state_dict", "model", "module", "net", "network")
"""Under which keys they keep the weights themselves."""
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of all that is below a compiled module."""
_MOST_WRAPPERS = 4
"""Levels of wrapping, each of which puts a word before all names."""
_PLAIN_OBJECTS = [
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.ndarray,
    np.dtype,
    multiarray.scalar,
    multiarray._reconstruct,
    *{type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f4", "f8", "U1")},
]
"""Objects that hold plain values alone, and run nothing when they are read."""
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    ImportError,
    TypeError,
)


def read_weights(source: str | Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors``, ``.pt`` or ``.pth`` file or an http(s) address.

    Of a file that holds a model and its moving average, the average is read, with a warning that says so. A download
    is kept in torch's hub folder; where its name ends in ``-<hash>.<suffix>``, as torchvision's do, the hash is
    checked.

    Args:
        trust: also read files that hold other objects than tensors and plain values. Reading these can run any code.

    Raises:
        WeightsError: there is no such file, it cannot be fetched or read, or it holds something else.
    """
    text = str(source)
    path = download(text) if urlparse(text).scheme in ("http", "https") else Path(source)
    if not path.is_file():
        raise WeightsError(f"weights: expected a file or an http(s) address, found nothing at {text}")
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _load(path, text, trust)
    except _UNREADABLE as error:
        if isinstance(error, WeightsError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"weights: {text} cannot be read as tensors: {reason}") from error
    tensors = _unwrapped(content, text)
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise WeightsError(f"weights: expected named tensors in {text}, got {_describe(tensors)}")
    return {str(name): tensor for name, tensor in tensors.items()}


def download(address: str) -> Path:
    """The file at an address, fetched into torch's hub folder unless it lies there.

    Raises:
        WeightsError: it cannot be fetched, or its hash is not the one in its name.
    """
    name = Path(urlparse(address).path).name
    if not name:
        raise WeightsError(f"weights: expected an address that ends in a file name, got {address}")
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.is_file():
        match = _HASH.search(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(target), match[1] if match else None, progress=False)
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(f"weights: {address} cannot be fetched: {error}") from error
    return target


def without_prefix(
    tensors: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    source: str,
    rename: Callable[[str, Mapping[str, Tensor]], str] = lambda name, known: name,
) -> dict[str, Tensor]:
    """The tensors without what wrappers put before or into all names of the model, such as ``module.``.

    Args:
        known: the tensors of the model.
        rename: from a name in the file to the one the model may have for it.

    Raises:
        WeightsError: several models of this kind lie in the file.
    """
    tensors = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for depth in range(min(len(parts), _MOST_WRAPPERS + 1)):
            rest = ".".join(parts[depth:])
            if rename(rest, known) in known:
                counts[name[: len(name) - len(rest)]] += 1
    prefixes = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    if not prefixes or "" in prefixes or 2 * counts[prefixes[0]] < len(known):
        return tensors
    if len(prefixes) > 1:
        raise WeightsError(
            f"weights: {source} holds several models of this kind, under {' and '.join(map(repr, prefixes))}; save the "
            f"tensors of one of them alone"
        )
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items()}


def _load(path: Path, source: str, trust: bool) -> Any:
    if trust:
        return torch.load(path, map_location="cpu", weights_only=False)
    with safe_globals(_PLAIN_OBJECTS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            objects = _other_objects(path)
            if not objects:
                raise
            raise WeightsError(
                f"weights: {source} holds other objects than tensors ({', '.join(objects[:5])}), and reading these can "
                f"run any code; set trust: true where you know who made it, or save its tensors alone"
            ) from error


def _other_objects(path: Path) -> list[str]:
    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # whatever a broken file brings forth
        return []


def _unwrapped(content: Any, source: str) -> Any:
    """The named tensors inside what a training script saved; of a model and its moving average, the average."""
    while True:
        if isinstance(content, nn.Module):
            return content.float().state_dict()
        if not isinstance(content, Mapping):
            return content
        inside = {
            key: content[key]
            for key in (*AVERAGES, *MODELS)
            if isinstance(content.get(key), (Mapping, nn.Module)) and content[key]
        }
        if not inside:
            return content
        key, *others = inside
        if key in AVERAGES and others:
            warnings.warn(
                f"weights: {source} holds a model ({others[0]!r}) and its moving average ({key!r}); "
                f"the moving average is taken",
                RuntimeWarning,
                stacklevel=3,
            )
        content = inside[key]


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = list(map(str, content))
        shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        return f"a mapping with the keys {shown or '(none)'}"
    return f"a {type(content).__name__}"
