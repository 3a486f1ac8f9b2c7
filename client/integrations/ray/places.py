"""Where a follower's store and port are on a node, so that the next replica there is the same follower. Knows nothing of Ray."""

from __future__ import annotations

import fcntl
import itertools
import socket
from pathlib import Path


class FollowerPlace:
    """A store and a port on this node that no other follower has, held until the process ends.

    Whoever has it next finds both again, and so is the same follower after a restart: the primary knows followers by their address.
    """

    def __init__(self, base: Path, host: str) -> None:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in itertools.count():
            self._file = (base / f"{number}.port").open("a+")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                continue
            self.store = base / str(number)
            self.port = self._port(host)
            return

    def leave(self) -> None:
        """Another may have it."""
        self._file.close()

    def _port(self, host: str) -> int:
        self._file.seek(0)
        known = self._file.read()
        port = free_port(host, int(known) if known.isdecimal() else 0)
        self._file.truncate(0)
        self._file.write(str(port))
        self._file.flush()
        return port


def free_port(host: str, wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else another one. If another program takes it before it is used, the server ends and says so."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that was there before are no reason
        try:
            probe.bind((host, wanted))
        except OSError:
            if not wanted:
                raise
            return free_port(host)
        return int(probe.getsockname()[1])
