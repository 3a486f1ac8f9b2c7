"""The command line: help without a server, one readable line for what goes wrong, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from polyhead.client import cli, cli_app
from tests.client.fake_server import HEAD_SHAPES, FakeServer, rich_error
from tests.client.test_transport import FULL


def polyhead(*arguments: str) -> Any:
    return CliRunner().invoke(cli_app.build_app(arguments), list(arguments))


def on(server: FakeServer, *arguments: str) -> Any:
    return polyhead(*arguments, "--server", server.target)


def assert_one_error(result: Any, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["heads", "--help"], ["ood", "--help"], *([c, "--help"] for c in ("status", "generate", "score", "split", "merge"))],
)
def test_help(arguments: Sequence[str]) -> None:
    result = polyhead(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_every_command_is_there() -> None:
    top, heads = polyhead("--help").output, polyhead("heads", "--help").output
    assert all(name in top for name in ("serve", "status", "split", "merge", "generate", "score", "heads", "ood"))
    assert all(name in heads for name in ["list", "push", "pull", "copy", "activate", "rollback", "delete", "watch", "history"])
    assert "calibrate" in heads
    assert all(name in polyhead("ood", "--help").output for name in ("fit", "list"))


def test_unreachable_server_is_one_line_and_a_hint() -> None:
    assert_one_error(polyhead("heads", "list", "--server", "127.0.0.1:1"), "127.0.0.1:1", "hint: does `polyhead serve` run")


def test_server_errors_are_one_line(server: FakeServer) -> None:
    server.failures["Generate"] = [rich_error(FULL, "the queue is full: 9 waiting\\nhint: come back later")]
    assert_one_error(on(server, "generate", "x"), "the queue is full: 9 waiting\nhint: come back later")
    assert_one_error(on(server, "heads", "activate", "policy"), "activate needs a version", "policy@7")
    assert_one_error(on(server, "heads", "push", "policy", "/nowhere"), "no such folder")
    assert_one_error(on(server, "status", "--tls-ca", "/nowhere"), "cannot read --tls-ca")


def test_generate_streams_or_lists_or_prints_json(server: FakeServer) -> None:
    one = on(server, "generate", "Hi", "--score", "rule", "--rule", "no-insults", "--chat", "--max-new-tokens", "5")
    assert one.stdout == "ab\n"
    assert "policy@7 generation 3, 3 tokens, stop_string" in one.stderr
    assert "no-insults broken 0.250" in one.stderr
    assert server.requests["Generate"][0].prompts[0].WhichOneof("source") == "chat"
    assert on(server, "generate", "Hi", "-n", "2").stdout.count("policy@7") == 2
    plain = json.loads(on(server, "generate", "Hi", "-n", "2", "--score", "value", "--json").stdout)
    assert plain[0]["finish_reason"] == "stop_string"
    assert plain[0]["scores"]["value"]["values"] == pytest.approx([0.1, 0.2, 0.3])


def test_score_prints_every_head(server: FakeServer) -> None:
    heads = [part for head in ("reference", "preference", "value", "rule") for part in ("--head", head)]
    lines = on(server, "score", "p", "c", *heads, "--rule", "no-insults").stdout.splitlines()
    assert lines[0] == "reference@1: log-prob -6.000 of 3 tokens"
    assert len(lines) == 4


def test_heads_commands(server: FakeServer, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    weights = {name: np.ones(shape, np.float32) for name, shape in HEAD_SHAPES.items()}
    (source / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    assert on(server, "heads", "push", "policy", str(source), "--activate").stdout.startswith("policy@1\n2 tensors sent")
    assert "2 tensors" in on(server, "heads", "pull", "policy@1", str(tmp_path / "out")).stdout
    assert safetensors.numpy.load_file(tmp_path / "out" / "head.safetensors").keys() == weights.keys()
    assert on(server, "heads", "copy", "policy@1", "reference").stdout == "reference@5\n"
    assert "generation 4 from 3" in on(server, "heads", "activate", "policy@1", "value@2", "--note", "r1").stdout
    assert dict(server.requests["ActivateHeads"][1].heads) == {"policy": 1, "value": 2}
    assert "generation 5" in on(server, "heads", "rollback").stdout
    assert on(server, "heads", "delete", "policy@1").stdout == "deleted policy@1\n"
    assert "policy@2" in on(server, "heads", "list").stdout
    assert len(json.loads(on(server, "heads", "list", "--json").stdout)) == 2
    assert "(start)" in on(server, "heads", "history").stdout


def test_status_is_one_screen(server: FakeServer) -> None:
    screen = on(server, "status").stdout
    assert "10.0 KiB for 2 heads: 1.0 models in place of 2" in screen
    assert "heads 4.0 KiB of 1.0 GiB; at most 2 unused versions of a name" in screen
    lines = [line.split() for line in screen.splitlines()]
    assert ["policy", "@7", "@5", "@7", "4.0", "KiB", "3"] in lines
    assert ["old", "-", "@1", "2.0", "KiB", "0"] in lines
    assert len(screen.splitlines()) < 25
    assert json.loads(on(server, "status", "--json").stdout)["status"]["generation"] == 3


def test_environment_names_the_server(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_SERVER", server.target)
    monkeypatch.setenv("POLYHEAD_TOKEN", "s3cret")
    assert polyhead("heads", "history").exit_code == 0
    assert server.metadata["authorization"] == "Bearer s3cret"


def test_missing_extras_say_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert "pip install 'polyhead[cli]'" in capsys.readouterr().err
    monkeypatch.setattr(cli_app, "find_spec", lambda name: None)
    assert_one_error(polyhead("split", "a", "b"), "pip install 'polyhead[server]'")
    monkeypatch.setitem(sys.modules, "polyhead.server.main", None)
    assert_one_error(polyhead("serve", "--port", "1"), "pip install 'polyhead[server]'")


def test_serve_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from polyhead.client.cli_app import build_app; build_app(['heads', 'list']); "
        "sys.exit(any(name.startswith(('polyhead.server', 'torch')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
