"""What the store's tests share: a manifest, blobs that name themselves, and a child process that pushes and activates."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from polyhead.heads.format import tensorfile
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.lora import LoraAdapter
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.tensorfile import TensorData
from polyhead.heads.store.records import GenerationRecord
from polyhead.heads.store.store import HeadStore
from tests.e2e.forked import ForkedStore

TRUNK = "ab" * 32
# kill -9 leaves the page cache alone, so a RAM disk shows the same as a real one, without ten thousand waits for fsync
RAM = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None


def manifest(**changes: object) -> HeadManifest:
    fields: dict[str, object] = {
        "kind": HeadKind.POLICY,
        "trunk_id": TRUNK,
        "split_layer": 2,
        "num_layers": 4,
        "output": OutputKind.TIED,
    }
    return HeadManifest(**{**fields, **changes})  # type: ignore[arg-type]


def blob(label: object) -> bytes:
    return f"weights {label};".encode() * 300


def head_file(**labels: object) -> bytes:
    """A real head file, one tensor for each label."""
    return tensorfile.canonical_bytes({tensor: floats(label) for tensor, label in labels.items()})


def push(
    store: HeadStore, name: str, label: object, *, request_id: str = "", base: str = "", data: bytes = b""
) -> int:
    """Push a blob (or `data`) in three chunks, with `base` as a LoRA head on it; the version."""
    data = data or blob(label)
    with store.begin_push(len(data), hashlib.sha256(data).hexdigest()) as staging:
        for start in range(0, len(data), len(data) // 2):
            staging.write(data[start : start + len(data) // 2])
        digest = staging.finish()
    made = manifest(base=base, lora=LoraAdapter(rank=2, alpha=4.0)) if base else manifest()
    return store.add_version(name, digest, made, request_id=request_id).version


def floats(label: object) -> TensorData:
    """A tensor that names itself."""
    data = hashlib.sha256(str(label).encode()).digest() * 40
    return TensorData("F32", (len(data) // 4,), data)


def push_delta(store: HeadStore, name: str, base: int, changes: dict[str, object]) -> int:
    """Push only the tensors of these labels against a version of the same name; the version."""
    data = tensorfile.canonical_bytes({tensor: floats(label) for tensor, label in changes.items()})
    with (
        store.open_blob(store.get(name, base).blob) as file,
        store.begin_push(len(data), hashlib.sha256(data).hexdigest()) as sent,
    ):
        sent.write(data)
        sent.verify()
        with store.rebuild(file, sent) as whole:
            digest = whole.finish()
    return store.add_version(name, digest, manifest()).version


def activate(store: HeadStore, heads: dict[str, int], *, request_id: str = "") -> GenerationRecord:
    current = store.current
    return store.commit_generation(heads, parent=current.number if current else None, request_id=request_id)


def run_child(folder: Path, failpoint: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run store_child to its end, or to the failpoint armed in its environment."""
    with start_child(folder, *arguments, failpoint=failpoint) as child:
        try:
            output, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    return subprocess.CompletedProcess(child.args, child.returncode, output, errors)


def start_child(folder: Path, *arguments: str, failpoint: str = "") -> ForkedStore:
    command = [sys.executable, "-m", "tests.heads.store.store_child", str(folder), *arguments]
    return ForkedStore(command, env={**os.environ, "POLYHEAD_FP": failpoint}, text=True)


def assert_no_leftovers(folder: Path) -> None:
    """I5: nothing staged, every blob has its own SHA-256 and is referred to by a version."""
    assert list((folder / "staging").iterdir()) == []
    with HeadStore.open(folder, TRUNK) as store:
        wanted = {record.blob for name in store.names() for record in store.versions(name)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "blobs").iterdir()}
    assert set(found) == wanted
    assert all(name == digest for name, digest in found.items())


def active_labels(store: HeadStore) -> dict[str, bytes]:
    """name -> content of the active set, read back from disk."""
    current = store.current
    if current is None:
        return {}
    return {name: bytes(store.read_blob(store.get(name, version).digest)) for name, version in current.heads.items()}


def assert_restarts_equal(store: HeadStore, folder: Path) -> None:
    """Everything that can be asked is the same after a restart."""
    before = (store.names(), [store.versions(name) for name in store.names()], store.history(), store.current)
    store.close()
    with HeadStore.open(folder, TRUNK) as again:
        after = (again.names(), [again.versions(name) for name in again.names()], again.history(), again.current)
    assert after == before


OLD = {"policy": blob("policy 1"), "value": blob("value 1")}  # of the store that `prepared` is
NEW = {"policy": blob("policy 2"), "value": blob("value 2")}


def push_and_activate(store: HeadStore) -> None:
    activate(store, {name: push(store, name, f"{name} 2") for name in ("policy", "value")})
