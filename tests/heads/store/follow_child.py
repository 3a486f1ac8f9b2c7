"""A store-only process for the crash tests: takes over all that another store's folder holds, generation by generation, then spent numbers.

Usage: python -m tests.heads.store.follow_child PRIMARY FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from polyhead.heads.store import records
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import TRUNK


def main(primary: Path, folder: Path) -> None:
    with HeadStore.open(folder, TRUNK) as store:
        for path in sorted((primary / "generations").glob("*.json"), key=lambda path: int(path.stem)):
            generation = records.decode_generation(path.read_bytes())
            for name, number in generation.heads.items():
                version = records.decode_version((primary / "versions" / name / f"{number}.json").read_bytes())
                if not store.is_blob_held(version.blob, version.num_bytes):
                    store.put_blob((primary / "blobs" / version.blob).read_bytes())
                store.adopt_version(version)
            store.adopt_generation(generation)
        for path in sorted((primary / "versions").glob("*/HIGHEST.json")):
            store.adopt_spent(path.parent.name, records.decode("high_water", path.read_bytes())["highest"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
