"""polyhead.service: systemd's own check where there is one, flags and settings that exist, and the hardening that was meant."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from polyhead.server.rpc.auth import Role, load_tokens
from polyhead.server.versions.registry import EXIT_AFTER_COMMIT
from tests.deploy.conftest import DEPLOY
from tests.deploy.settings import flags, load, longest_end_s, with_files

UNIT = (DEPLOY / "polyhead.service").read_text(encoding="utf-8")
EXAMPLE = (DEPLOY / "environment.example").read_text(encoding="utf-8")
CANNOT_START = 2  # server/main.py
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@pytest.fixture(scope="module")
def unit() -> dict[str, dict[str, list[str]]]:
    """Section -> key -> its values in order. Every line is a section, an assignment, a comment or blank."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in UNIT.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            current = sections.setdefault(heading[1], defaultdict(list))
        elif line and line[0] not in "#;":
            assignment = re.fullmatch(r"(\w+)=(.*)", line)
            assert assignment, line
            current[assignment[1]].append(assignment[2])
    return sections


def one(unit: dict[str, dict[str, list[str]]], key: str) -> str:
    [value] = unit["Service"][key]
    return value


def environment(unit: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    return dict(word.split("=", 1) for line in unit["Service"]["Environment"] for word in line.split())


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a command that is really there: systemd looks for it."""
    path = tmp_path / "polyhead.service"
    path.write_text(UNIT.replace("/opt/polyhead/bin/polyhead", str(Path(sys.executable).parent / "polyhead")), encoding="utf-8")
    return path


@needs_systemd
def test_systemd_accepts_it(installed: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_would_refuse_a_misspelt_line(installed: Path) -> None:
    installed.write_text(installed.read_text(encoding="utf-8").replace("ProtectSystem=", "ProtectSytem="), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "ProtectSytem" in done.stderr


@needs_systemd
def test_systemd_finds_little_to_attack(installed: Path) -> None:
    """Its own scale: 10 is an unconfined service; at most 2.0 here (given times ten)."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout[-200:]


def test_it_starts_a_command_and_flags_that_exist(unit: dict[str, dict[str, list[str]]]) -> None:
    program, subcommand, *words = one(unit, "ExecStart").split()
    assert program == "/opt/polyhead/bin/polyhead"
    assert subcommand == "serve"
    assert {word for word in words if word.startswith("--")} <= flags()


def test_its_settings_are_the_servers(unit: dict[str, dict[str, list[str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commented ones, too: they are what an operator takes in for TLS."""
    active = {name: value for name, value in environment(unit).items() if name.startswith("POLYHEAD_")}
    commented = dict(re.findall(r"(POLYHEAD_\w+)=(\S+)", "\n".join(re.findall(r"^#Environment=(.*)", UNIT, re.MULTILINE))))
    assert commented.keys() == {"POLYHEAD_TLS_CERT", "POLYHEAD_TLS_KEY"}
    assert load(with_files(active | commented, tmp_path), monkeypatch).has_tokens


def test_each_file_of_credentials_is_loaded(unit: dict[str, dict[str, list[str]]]) -> None:
    """`%d/NAME` is there only if a LoadCredential of that name is; both in force, or both commented."""
    loaded = {line.partition(":")[0] for line in unit["Service"]["LoadCredential"]}
    assert {value.removeprefix("%d/") for value in environment(unit).values() if value.startswith("%d/")} == loaded
    commented = set(re.findall(r"^#LoadCredential=([\w.]+):", UNIT, re.MULTILINE))
    assert set(re.findall(r"%d/([\w.]+)", UNIT)) == loaded | commented


def test_its_folders_are_where_the_server_writes(unit: dict[str, dict[str, list[str]]]) -> None:
    variables = environment(unit)
    assert f"{variables['XDG_STATE_HOME']}/polyhead" == f"/var/lib/{one(unit, 'StateDirectory')}"
    assert f"{variables['XDG_CACHE_HOME']}/polyhead" == f"/var/cache/{one(unit, 'CacheDirectory')}"
    assert variables["HF_HOME"].startswith("/var/cache/polyhead/")
    assert one(unit, "StateDirectoryMode") == "0700"


def test_stopping_takes_no_longer_than_systemd_waits(unit: dict[str, dict[str, list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(dict(re.findall(r"^(POLYHEAD_\w+)=(.*)$", EXAMPLE, re.MULTILINE)), monkeypatch)
    assert int(one(unit, "TimeoutStopSec")) > longest_end_s(config)
    assert one(unit, "KillSignal") == "SIGTERM"


def test_what_is_started_again(unit: dict[str, dict[str, list[str]]]) -> None:
    """A server that cannot start as configured is not; one that ended behind a commit point is."""
    assert one(unit, "Restart") == "on-failure"
    assert one(unit, "RestartPreventExitStatus") == str(CANNOT_START)
    assert str(EXIT_AFTER_COMMIT) not in one(unit, "RestartPreventExitStatus").split()
    assert "SuccessExitStatus" not in unit["Service"]


def test_hardening(unit: dict[str, dict[str, list[str]]]) -> None:
    wanted = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "RestrictNamespaces": "yes",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
        "User": "polyhead",
    }
    assert {key: one(unit, key) for key in wanted} == wanted
    assert "MemoryDenyWriteExecute" not in unit["Service"], "torch's just-in-time kernels would not load"
    assert "ProcSubset" not in unit["Service"], "the memory budget is read from /proc/meminfo"


def test_the_example_environment_holds_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are commented out, too. systemd takes no comment behind a value."""
    lines = [line for line in EXAMPLE.splitlines() if "POLYHEAD_" in line and not line.startswith("# ")]
    assert all(re.fullmatch(r"#?POLYHEAD_[A-Z_]+=[^\s#]+", line) for line in lines)
    variables = dict(line.removeprefix("#").split("=", 1) for line in lines)
    config = load(variables, monkeypatch)
    assert (config.split_layer, config.keep_versions, config.drain_grace) == (26, 10, 45)


def test_the_example_tokens_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    shutil.copyfile(DEPLOY / "tokens.example.toml", path)
    path.chmod(0o600)
    assert [token.caller.role for token in load_tokens(path)] == [Role.ANNOTATOR, Role.WORKER, Role.TRAINER, Role.ADMIN]
