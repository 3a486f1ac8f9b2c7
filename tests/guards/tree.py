"""What the guards look at: the Python files of each part, and every text file that is or would be tracked."""

from __future__ import annotations

import ast
import functools
import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"polyhead.v1": "protos/polyhead/v1", "polyhead.heads": "heads", "polyhead.server": "server", "polyhead.client": "client"}


@functools.cache
def listed() -> tuple[Path, ...]:
    """Tracked files, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return tuple(path for name in sorted(set(done.stdout.split("\0"))) if name and (path := ROOT / name).is_file())


def python_files() -> list[Path]:
    """All of the tree's own, tests included."""
    return [path for path in listed() if path.suffix == ".py"]


@functools.cache
def modules() -> dict[str, Path]:
    """Import name -> file, for everything that is installed."""
    found = {}
    for package, folder in PARTS.items():
        for path in python_files():
            if path.is_relative_to(ROOT / folder):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file, once for all guards: a walk takes as long as parsing."""
    found = tuple(ast.walk(parse(path)))
    gc.freeze()  # a million nodes that stay: half of the guards' time went into collections that looked at them
    return found


def shown(path: Path, node: ast.AST | None = None) -> str:
    """How a failure names a place."""
    line = f":{node.lineno}" if isinstance(node, (ast.expr, ast.stmt)) else ""
    return f"{path.relative_to(ROOT)}{line}"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or a chain of attributes, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            yield name, node
