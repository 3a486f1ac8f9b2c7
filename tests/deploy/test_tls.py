"""The server as compose.tls.yaml and the unit with TLS start it: beyond loopback, with a certificate and a tokens file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.client.local import LocalServer
from tests.certificates import write_pair
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

WORKER = "worker-token-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    write_pair(folder)
    (folder / "tokens.toml").write_text(f'worker = ["another-token-0123456789", "{WORKER}"]\n', encoding="utf-8")
    (folder / "tokens.toml").chmod(0o400)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalServer]:
    files = {"tls_cert": folder / "tls.crt", "tls_key": folder / "tls.key", "tokens": folder / "tokens.toml"}
    with serving(save_tiny_llama(folder / "model"), folder / "store", "--host", "0.0.0.0", **files) as opened:
        yield opened


def polyhead(server: LocalServer, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line with its settings from the environment, as in a container's health check."""
    own = {"POLYHEAD_SERVER": f"localhost:{server.ready['port']}", **variables}
    command = [str(Path(sys.executable).parent / "polyhead"), *words]
    return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=60, check=False)


def test_the_health_check_needs_the_certificate_and_no_token(server: LocalServer, folder: Path) -> None:
    done = polyhead(server, "health", POLYHEAD_TLS_CA=str(folder / "tls.crt"))
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
    without = polyhead(server, "health", "--timeout", "2")
    assert without.returncode == 1
    assert "Traceback" not in without.stderr


def test_work_needs_a_token_of_the_file(server: LocalServer, folder: Path) -> None:
    trusted = {"POLYHEAD_TLS_CA": str(folder / "tls.crt")}
    assert "needs a valid token" in polyhead(server, "status", **trusted).stderr
    assert polyhead(server, "status", POLYHEAD_TOKEN=WORKER, **trusted).returncode == 0
    refused = polyhead(server, "heads", "rollback", POLYHEAD_TOKEN=WORKER, **trusted)
    assert "needs a token of the role trainer or admin: this one has the role worker" in refused.stderr
