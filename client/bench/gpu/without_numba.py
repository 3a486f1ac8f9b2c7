"""Lets the engine be imported where Numba cannot be: on a GPU none of its layers are Numba's, and a first run there has no time to lose.

Numba refuses a numpy that is newer than it knows. Only for the benchmark: a server for people is installed with what it needs.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

MODULES = ("numba", "llvmlite")


class Nothing:
    """Takes the place of every name: what it is called with, made of or compared with gives nothing again."""

    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def __init_subclass__(cls, **options: Any) -> None:
        pass

    def __call__(self, *given: Any, **options: Any) -> Nothing:
        return Nothing()

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __getitem__(self, key: Any) -> Nothing:
        return Nothing()

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __index__(self) -> int:
        return 0

    def __lt__(self, other: object) -> bool:
        return False

    def __add__(self, other: object) -> Nothing:
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (Nothing,)

    __int__ = __index__
    __gt__ = __le__ = __ge__ = __lt__
    __radd__ = __mul__ = __rmul__ = __sub__ = __truediv__ = __floordiv__ = __or__ = __and__ = __add__


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, modules: tuple[str, ...]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self._modules else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def replace_missing(modules: tuple[str, ...] = MODULES) -> str:
    """If the first of these cannot be imported, put nothing in the place of all. Returns why; empty if it can."""
    try:
        importlib.import_module(modules[0])
    except Exception as error:  # missing, or refuses the numpy that is there, or its library does not load
        for name in [each for each in sys.modules if each.split(".")[0] in modules]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder(modules))
        return f"{type(error).__name__}: {error}"
    return ""


REASON = replace_missing()
