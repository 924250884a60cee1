"""Single modules of other people's repositories, loaded from a clone without what they import.

What they import and is neither installed nor named too becomes a stand-in: its names can be called, used as decorators
and inherited from, and do nothing.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch


class StandIn:
    """Any value: a call returns what it is given where that is one function or class, else another stand-in."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else StandIn()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Base,)


class _Base(torch.nn.Module):
    """What a class inherits in the place of one that is not there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


class _StandInModule(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class _Finder(MetaPathFinder, Loader):
    """Finds the real modules in a folder, and makes all others."""

    def __init__(self, folder: Path, real: Sequence[str]) -> None:
        self.folder, self.real = folder, set(real)
        self.roots = {name.partition(".")[0] for name in real}.union(*(self._imported(name) for name in real))
        self.made: list[str] = []

    def _imported(self, name: str) -> set[str]:
        """The packages that a module imports and that are not installed."""
        nodes = list(ast.walk(ast.parse((self.folder / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))))
        plain = (alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names)
        others = (node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level)
        packages = {module.partition(".")[0] for module in (*plain, *others)}
        return {package for package in packages if importlib.util.find_spec(package) is None}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.roots:
            return None
        self.made.append(fullname)
        if fullname in self.real:
            file = self.folder / (fullname.replace(".", "/") + ".py")
            return importlib.util.spec_from_file_location(fullname, file)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def official(folder: Path, *names: str) -> Iterator[list[Any]]:
    """The modules of these dotted names below ``folder``, which may import each other; nothing is left behind."""
    finder = _Finder(folder, names)
    to_cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[assignment,method-assign]
    sys.meta_path.append(finder)
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.meta_path.remove(finder)
        torch.Tensor.cuda = to_cuda  # type: ignore[method-assign]
        for name in finder.made:
            sys.modules.pop(name, None)
