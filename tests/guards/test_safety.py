"""Nothing that turns data into code, no token compared in a way that time gives away, no connection to anywhere else."""

from __future__ import annotations

import ast
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from polyhead.client import Client
from tests.conftest import AuditedServer
from tests.guards.tree import ROOT, calls, dotted, nodes, python_files, shown

BANNED_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
BANNED_CALLS = {"eval", "exec", "torch.load", "torch.hub.load", "numpy.load", "np.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load"}
SECRET = re.compile(r"(^|_)(hash(es)?|presented|secret|bearer|tokens?)(_|$)(?!ids?)")


def test_data_never_becomes_code() -> None:
    """No pickle or its relatives, no eval, no loader that runs what a file says."""
    wrong = [line for path in python_files() for line in ways_from_data_to_code(path)]
    assert not wrong, "\n".join(wrong)


def ways_from_data_to_code(path: Path) -> list[str]:
    wrong = []
    for node in nodes(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        wrong += [f"{shown(path, node)}: imports {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
    for name, call in calls(path):
        if name in BANNED_CALLS and not (path.parent.name in ("guards", "trl") and name == "exec"):  # the README's code, TRL's
            wrong.append(f"{shown(path, call)}: calls {name}")
        for keyword in call.keywords:
            if keyword.arg in ("trust_remote_code", "allow_pickle") and not is_false(keyword.value):
                wrong.append(f"{shown(path, call)}: {keyword.arg} is not False")
    return wrong


def test_remote_code_is_never_trusted() -> None:
    """`trust_remote_code` is False wherever it is a key of a dict or the target of an assignment, too."""
    wrong = [place for path in python_files() for place in places_that_trust_remote_code(path)]
    assert not wrong, "\n".join(wrong)


def places_that_trust_remote_code(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Dict):
            pairs = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)]
        elif isinstance(node, ast.Assign):
            pairs = [(dotted(target).rpartition(".")[2], node.value) for target in node.targets]
        else:
            continue
        for name, value in pairs:
            if name == "trust_remote_code" and not is_false(value):
                yield shown(path, node)


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_tokens_are_compared_in_constant_time() -> None:
    """hmac.compare_digest is the only comparison that a token or its hash takes part in."""
    auth = ROOT / "server" / "rpc" / "auth.py"
    assert [name for name, _ in calls(auth) if name == "hmac.compare_digest"]
    wrong = []
    for path in (auth, ROOT / "server" / "rpc" / "interceptors.py"):
        for node in nodes(path):
            if isinstance(node, ast.Compare):
                operands = [dotted(operand).rpartition(".")[2] for operand in (node.left, *node.comparators)]
                wrong += [f"{shown(path, node)}: {ast.unparse(node)}" for name in operands if SECRET.search(name)]
    assert not wrong, "\n".join(wrong)


def test_serving_connects_to_nowhere(audited_server: AuditedServer) -> None:
    """A server on a local folder, after one answered request: only loopback, by its Python code and by its open sockets.

    The audit hook sees what Python's socket module does; gRPC has sockets of its own, which the list of connections shows.
    """
    with Client(audited_server.address) as client:
        assert client.generate(["Hello"], max_new_tokens=2, ignore_eos=True)[0].token_ids
        events = audited_server.audit_file.read_text(encoding="utf-8").splitlines()
        sockets = psutil.Process(audited_server.local.process.pid).net_connections("inet")
    assert any(socket.status == psutil.CONN_ESTABLISHED for socket in sockets)  # ours
    addresses = {event.split("\t")[1] for event in events}
    addresses |= {end.ip for socket in sockets for end in (socket.laddr, socket.raddr) if end}
    assert not {address for address in addresses if not is_loopback(address)}


def is_loopback(address: str) -> bool:
    if address in ("localhost", "None"):
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
