"""A process that adds and retires configurations, for the crash tests: `python -m tests.server.rewards.library_child FOLDER`."""

from __future__ import annotations

import sys

from polyhead.heads.store.store import HeadStore
from tests.server.rewards.test_library import STEPS, TRUNK, World, take


def main(folder: str) -> None:
    with HeadStore.open(folder, TRUNK) as heads:
        world = World(heads)
        world.users = []
        for number in range(len(STEPS)):
            take(world, number)
            print("ack", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
