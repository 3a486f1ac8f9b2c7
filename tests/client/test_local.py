"""A server process of one's own ends with whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """#!/bin/sh
echo '{"host": "127.0.0.1", "port": 1}'
exec sleep 600
"""
OWNER = """
import sys
sys.executable = sys.argv[1]
from polyhead.client.local import local_server
with local_server() as server:
    print(server.process.pid, flush=True)
    server.process.wait()
"""


def test_sigterm_ends_the_server_with_its_owner(tmp_path: Path) -> None:
    """`make rlhf` that was killed left its server running: it ended on the spot, without leaving the block."""
    (tmp_path / "server").write_text(SERVER)
    (tmp_path / "server").chmod(0o755)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "server")], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        owner.send_signal(signal.SIGTERM)
        assert owner.wait(timeout=60) == 128 + signal.SIGTERM
        try:
            with pytest.raises(ProcessLookupError):
                os.kill(server, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
