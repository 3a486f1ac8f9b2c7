"""A store-only process for the crash tests: pushes, activates and deletes in rounds, and prints what it acknowledges.

Usage: python -m tests.heads.store.store_child FOLDER [ROUNDS]. Each round pushes policy and value, activates both as one set,
acknowledges, labels the policy and takes the label away again, and deletes old versions; among them a LoRA head on the policy just
pushed, and the base of a delta.
"""

from __future__ import annotations

import sys

from polyhead.heads.store import failpoints
from polyhead.heads.store.pack import Retention
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import TRUNK, activate, head_file, push, push_delta


def main(folder: str, rounds: int) -> None:
    assert not {"torch", "transformers", "numpy"} & set(sys.modules)
    with HeadStore.open(folder, TRUNK) as store:
        print("opened", flush=True)
        first = store.current.number if store.current else 0
        for number in range(first + 1, first + 1 + rounds):
            heads = {name: push(store, name, f"{name} {number}") for name in ("policy", "value")}
            generation = activate(store, heads)
            failpoints.hit("before_flip")
            failpoints.hit("before_ack")
            print("ack", generation.number, flush=True)
            failpoints.hit("after_ack")
            store.label("policy", heads["policy"], add=["best"])
            store.label("policy", heads["policy"], remove=["best"])
            extra = push(store, "policy", f"extra {number}")
            store.delete_version("policy", extra)
            adapter = push(store, "policy", f"adapter {number}", base=f"policy@{heads['policy']}")
            store.delete_version("policy", adapter)
            whole = push(store, "delta", "", data=head_file(a=f"a {number}", b=f"b {number}", c=f"c {number}"))
            made = push_delta(store, "delta", whole, {"b": f"new b {number}"})
            store.delete_version("delta", whole)
            assert store.read_blob(store.get("delta", made).blob) == head_file(a=f"a {number}", b=f"new b {number}", c=f"c {number}")
            store.collect(2)
            store.compact(Retention(max_files=1, num_files=1, num_generations=1, seconds=0))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
