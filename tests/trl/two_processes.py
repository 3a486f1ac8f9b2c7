"""What test_trl.py runs on two ranks: two GRPO steps, and a file of versions, first completions and the largest gap for each rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from polyhead.client.local import LocalServer


def main(address: str, folder: str, out: str) -> None:
    from tests.trl.test_trl import trained

    host, _, port = address.rpartition(":")
    server = LocalServer(None, {"host": host, "port": port})  # type: ignore[arg-type]
    rollout, _, same = trained(server, Path(folder), Path(out), max_steps=2)
    assert all(same)
    lines = [" ".join(map(str, rollout.versions)), str(rollout.first), str(max(rollout.gaps))]
    Path(out, f"rank-{os.environ['RANK']}.txt").write_text("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
