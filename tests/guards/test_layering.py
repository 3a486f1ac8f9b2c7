"""Imports run one way. Read from the syntax trees, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guards.tree import calls, dotted, modules, nodes, parse, python_files, shown

# part -> parts that it may import; the longest matching name counts
MAY_IMPORT = {
    "polyhead.v1": {"polyhead.v1"},
    "polyhead.heads": {"polyhead.heads"},
    "polyhead.heads.format": {"polyhead.heads.format"},
    "polyhead.heads.store": {"polyhead.heads.store", "polyhead.heads.format"},
    "polyhead.heads.model": {"polyhead.heads.model", "polyhead.heads.format"},
    "polyhead.heads.training": {"polyhead.heads.training", "polyhead.heads.model", "polyhead.heads.format", "polyhead.client"},
    "polyhead.client": {"polyhead.client", "polyhead.v1", "polyhead.heads.format"},
    "polyhead.client.cli": {"polyhead.client.cli", "polyhead.client"},  # an application: commands import what they run when it is asked for
    "polyhead.client.annotate": {"polyhead.client.annotate", "polyhead.client"},  # an application; a test of its own: public names alone
    "polyhead.client.demo": {"polyhead.client.demo", "polyhead.client", "polyhead.heads.model", "polyhead.heads.training"},
    "polyhead.client.rlhf": {
        "polyhead.client.rlhf",
        "polyhead.client",
        "polyhead.client.bench.plot",
        "polyhead.heads.format",
        "polyhead.heads.model",
        "polyhead.heads.training",
    },
    "polyhead.client.rlhf.evidence.sharing.trl_rounds": {  # a user of what other trainers call
        "polyhead.client.rlhf",
        "polyhead.client",
        "polyhead.client.integrations",
        "polyhead.heads.model",
    },
    "polyhead.client.bench.plot": set(),  # numbers and geometry: nothing of ours
    "polyhead.client.integrations": {"polyhead.client.integrations", "polyhead.client"},  # an application: what other trainers call
    "polyhead.client.bench": {
        "polyhead.client.bench",
        "polyhead.client.bench.plot",
        "polyhead.client",
        "polyhead.heads.format",
        "polyhead.heads.model",
        "polyhead.server",
        "polyhead.server.host",
    },
    "polyhead.client.bench.gpu": {
        "polyhead.client.bench.gpu",
        "polyhead.client.bench",
        "polyhead.client.bench.peers",
        "polyhead.heads.format",
        "polyhead.heads.model",
        "polyhead.server.engine",
        "polyhead.server.host",
    },  # one process: no client and no server
    "polyhead.client.bench.peers": {"polyhead.server", "polyhead.server.engine", "polyhead.server.host", "polyhead.heads.model"},
    "polyhead.client.bench.peers.on_trainer": {"polyhead.client.bench", "polyhead.client"},  # a user of our server
    "polyhead.server": {
        "polyhead.server",
        "polyhead.server.host",
        "polyhead.server.engine",
        "polyhead.heads.format",
        "polyhead.heads.model",
        "polyhead.heads.store",
        "polyhead.v1",
    },
    "polyhead.server.host": {"polyhead.server.host", "polyhead.heads.format"},
    "polyhead.server.engine": {  # protobuf stops at the door
        "polyhead.server.engine",
        "polyhead.server.host",
        "polyhead.heads.format",
        "polyhead.heads.model",
    },
}
# module -> what its functions import when a command needs it, never at its top
LAZY = {
    "polyhead.client.cli.app": {
        "polyhead.server.main",  # serve
        "polyhead.client.annotate.commands",  # annotate
        "polyhead.client.bench.command",  # bench
        "polyhead.client.bench.gpu.command",  # bench-gpu
        "polyhead.heads.model.split",
        "polyhead.heads.model.merge",
    },
    "polyhead.client.cli.training.train": {
        "polyhead.heads.training.data",
        "polyhead.heads.training.fit",
        "polyhead.heads.training.runs",
    },
    "polyhead.client.cli.training.endings": {
        "polyhead.heads.training.fit",
        "polyhead.heads.training.processes",
        "polyhead.heads.training.rl.rollout",
        "polyhead.heads.training.rl.served",
    },
    "polyhead.client.cli.training.train_rl": {
        "polyhead.heads.training.data",
        "polyhead.heads.training.processes",
        "polyhead.heads.training.rl.config",
        "polyhead.heads.training.rl.pretraining",
        "polyhead.heads.training.rl.prompts",
        "polyhead.heads.training.rl.report",
        "polyhead.heads.training.rl.rewards",
        "polyhead.heads.training.rl.rounds",
        "polyhead.heads.training.rl.served",
        "polyhead.heads.training.rule",
    },
    "polyhead.client.cli.heads.stopped_store": {"polyhead.heads.store.store", "polyhead.heads.format.errors"},
}


def part_of(module: str) -> str:
    return max((part for part in MAY_IMPORT if module == part or module.startswith(f"{part}.")), key=len)


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool, ast.AST], ...]:
    """(polyhead module, whether it waits for a call or a type checker, node), import_module("...") included."""
    return tuple(found_imports(path))


def found_imports(path: Path) -> Iterator[tuple[str, bool, ast.AST]]:
    inner = set(inner_nodes(parse(path)))
    for node in nodes(path):
        is_inner = node in inner
        if isinstance(node, ast.Import):
            yield from ((alias.name, is_inner, node) for alias in node.names if alias.name.startswith("polyhead"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polyhead"):
            targets = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {target for target in targets if target in modules() or target in MAY_IMPORT}
            yield from ((target, is_inner, node) for target in (known or {node.module or ""}))
    for name, call in calls(path):
        if name.endswith(("import_module", "__import__")) and call.args and isinstance(call.args[0], ast.Constant):
            target = str(call.args[0].value)
            if target.startswith("polyhead"):
                yield target, call in inner, call


def inner_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Those inside functions and `if TYPE_CHECKING`, each once."""
    for child in ast.iter_child_nodes(scope):
        yield from ast.walk(child) if is_lazy(child) else inner_nodes(child)


def is_lazy(scope: ast.AST) -> bool:
    is_function = isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))
    return is_function or (isinstance(scope, ast.If) and dotted(scope.test) == "TYPE_CHECKING")


def test_imports_run_one_way() -> None:
    """client -> protos and heads.format, server -> protos and heads, heads -> nothing of ours, heads.training -> client and heads."""
    wrong = []
    for module, path in modules().items():
        for target, is_inner, node in imports(path):
            is_listed = is_inner and target in LAZY.get(module, set())
            if part_of(target) not in MAY_IMPORT[part_of(module)] and not is_listed:
                wrong.append(f"{shown(path, node)}: {module} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "its_users"),
    [
        ("polyhead.server.fleet", {"polyhead.server.process.lifecycle", "polyhead.server.rpc.services.fleet"}),
        ("polyhead.server.parallel", {"polyhead.server.config", "polyhead.server.process.startup"}),
    ],
)
def test_what_a_single_server_does_not_need_is_imported_when_it_is_used(room: str, its_users: set[str]) -> None:
    """A server without followers and of one process, which most are, loads nothing of these."""
    users = {module: path for module, path in modules().items() if not module.startswith(room)}
    found = [(module, is_inner) for module, path in users.items() for target, is_inner, _ in imports(path) if target.startswith(room)]
    assert {module for module, _ in found} == its_users
    assert all(is_inner for _, is_inner in found)


def test_no_imports_run_in_a_circle() -> None:
    """Imports inside functions and for type checkers alone count as well: whoever reads one module of a circle has to read all."""
    known = modules()
    graph = {module: {target for target, _, _ in imports(path)} & set(known) - {module} for module, path in known.items()}
    found = [" <-> ".join(sorted(circle)) for circle in circles(graph)]
    assert not found, "\n".join(found)


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach each other."""
    reached = {node: descendants(node, graph) for node in graph}
    found: list[set[str]] = []
    for node in graph:
        circle = {other for other in reached[node] if node in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def descendants(node: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [*graph[node]]
    while waiting:
        if (target := waiting.pop()) not in found:
            found.add(target)
            waiting += graph[target]
    return found


@pytest.mark.parametrize(
    ("edges", "wanted"),
    [
        (["ab", "bc", "ac"], []),
        (["ab", "ba", "bc"], ["ab"]),
        (["ab", "bc", "ca", "cd", "de", "ed"], ["abc", "de"]),
    ],
)
def test_circles_are_found(edges: list[str], wanted: list[str]) -> None:
    graph = {node: {edge[1] for edge in edges if edge[0] == node} for node in "abcde"}
    assert sorted("".join(sorted(circle)) for circle in circles(graph)) == wanted


@pytest.mark.parametrize("module", sorted(LAZY))
def test_exceptions_are_in_use(module: str) -> None:
    """The list of exceptions holds none that went away."""
    assert {target for target, _, _ in imports(modules()[module])} >= LAZY[module]


def test_the_head_format_needs_the_standard_library_alone() -> None:
    """Client, server and store read a head file's facts with it, each without the others' packages."""
    wrong, known = [], {*sys.stdlib_module_names, "polyhead"}
    for module, path in modules().items():
        if module.startswith("polyhead.heads.format"):
            for node in nodes(path):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                wrong += [f"{shown(path, node)}: {name}" for name in names if name.split(".")[0] not in known]
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute_and_by_one_name() -> None:
    """`import server` would make a second copy of a module that `polyhead.server` already is."""
    wrong = []
    for path in python_files():
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                wrong.append(f"{shown(path, node)}: a relative import")
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{shown(path, node)}: {name}" for name in names if name.split(".")[0] in ("server", "heads", "client", "protos")]
    assert not wrong, "\n".join(wrong)


def test_the_engine_knows_no_wire() -> None:
    """Neither grpc nor protobuf below the door."""
    wrong = [
        shown(path, node)
        for module, path in modules().items()
        if module.startswith("polyhead.server.engine")
        for node in nodes(path)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""])
        if isinstance(node, (ast.Import, ast.ImportFrom)) and name.split(".")[0] in ("grpc", "google")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_frontend_uses_what_the_client_offers_to_everyone() -> None:
    """It is an application like any other user's: names of `polyhead.client` itself. The trial alone starts a server, too."""
    wrong = []
    for module, path in modules().items():
        if module.startswith("polyhead.client.annotate"):
            for target, _, node in imports(path):
                is_own = target.startswith("polyhead.client.annotate")
                is_public = isinstance(node, ast.ImportFrom) and node.module == "polyhead.client"
                is_trial = module.endswith(".trial") and target == "polyhead.client.local"
                wrong += [] if is_own or is_public or is_trial else [f"{shown(path, node)}: {target}"]
    assert not wrong, "\n".join(wrong)


def test_a_folder_of_the_frontend_imports_from_those_above_it() -> None:
    """In the order in which the package's docstring lists them."""
    root = "polyhead.client.annotate"
    known = modules()
    listed = [line.split()[0].rstrip("/") for line in (ast.get_docstring(parse(known[root])) or "").splitlines() if line.startswith("    ")]
    rank = {name.removesuffix(".py"): place for place, name in enumerate(listed)}
    assert rank.keys() == {module.removeprefix(f"{root}.").split(".")[0] for module in known if module.startswith(f"{root}.")}
    wrong = []
    for module, path in known.items():
        for target, _, node in imports(path) if module.startswith(f"{root}.") else ():
            own, other = (name.removeprefix(f"{root}.").split(".")[0] for name in (module, target))
            if target.startswith(f"{root}.") and rank[other] > rank[own]:
                wrong.append(f"{shown(path, node)}: {own} imports {other}")
    assert not wrong, "\n".join(wrong)
