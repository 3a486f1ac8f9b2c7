"""The command line: help without a server, one readable line for what goes wrong, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
import safetensors.numpy
import typer
from rich.text import Text
from typer.testing import CliRunner

from polyhead.client.cli import app, main, session
from polyhead.client.cli.session import Session, table
from tests.client.fake_messages import HEAD_SHAPES
from tests.client.fake_server import FakeServer
from tests.client.fake_state import rich_error
from tests.client.test_transport import FULL


def polyhead(*arguments: str) -> Any:
    return CliRunner().invoke(app.build_app(arguments), list(arguments))


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
    [
        ["--help"],
        ["heads", "--help"],
        ["ood", "--help"],
        *([c, "--help"] for c in ("status", "chat", "generate", "score", "configurations", "split", "merge")),
    ],
)
def test_help(arguments: Sequence[str]) -> None:
    result = polyhead(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_every_command_is_there() -> None:
    top, heads = polyhead("--help").output, polyhead("heads", "--help").output
    names = ("serve", "status", "health", "split", "merge", "chat", "generate", "score", "configurations", "heads", "ood")
    assert all(name in top for name in names)
    assert all(name in heads for name in ["list", "push", "pull", "copy", "activate", "rollback", "delete", "watch", "history"])
    assert "calibrate" in heads
    assert all(name in polyhead("ood", "--help").output for name in ("fit", "list"))


def test_unreachable_server_is_one_line_and_a_hint() -> None:
    assert_one_error(polyhead("heads", "list", "--server", "127.0.0.1:1"), "127.0.0.1:1", "hint: does `polyhead serve` run")


def test_server_errors_are_one_line(server: FakeServer) -> None:
    server.failures["Generate"] = [rich_error(FULL, "the queue is full: 9 waiting\\nhint: come back later")]
    assert_one_error(on(server, "generate", "x"), "the queue is full: 9 waiting\nhint: come back later")
    assert_one_error(on(server, "heads", "activate", "policy"), "a version is needed", "policy@7")
    assert_one_error(on(server, "heads", "push", "policy", "/nowhere"), "no such folder")
    assert_one_error(on(server, "status", "--tls-ca", "/nowhere"), "cannot read --tls-ca")


def test_nothing_is_cut_off_for_a_pipe_and_commands_are_not_broken(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables were fitted to 80 columns where no terminal was, and a repair command was broken into two lines, which no shell takes."""
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "preference-of-a-name-that-is-quite-long-but-not-more-than-allowed"
    shown = f"{name}@1 policy sft long-label-one long-label-two"
    console = StringIO()
    monkeypatch.setattr("sys.stdout", console)
    rows = table("", *["column"] * 5)
    rows.add_row(*shown.split())
    Session(cast(Any, None), as_json=False).show(None, Text(f"run: {'x ' * 100}--store DIR"), rows)
    lines = console.getvalue().splitlines()
    assert lines[0].endswith("x --store DIR")
    assert lines[-1].split() == shown.split()


def test_what_a_stopped_servers_store_cannot_do_is_said(server: FakeServer, tmp_path: Path) -> None:
    of_a_server = on(server, "heads", "rollback", "--to", "1", "--expected", "3", "--store", str(tmp_path))
    assert_one_error(of_a_server, "--expected needs a running server")
    assert_one_error(on(server, "heads", "rollback", "--store", str(tmp_path)), "give --to")


def test_every_option_of_every_command_says_what_it_is() -> None:
    def commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, each in getattr(command, "commands", {"": command}).items():
            if hasattr(each, "commands"):
                yield from commands(each, *names, name)
            else:
                yield (*names, name), each

    found = dict(commands(typer.main.get_command(app.build_app(()))))
    assert {names[1] for names in found if names[0] == "heads"} >= {"list", "push", "rollback", "history"}
    for names, command in found.items():
        assert command.help, names
        for parameter in command.params:
            assert parameter.help, (names, parameter.name)


def test_generate_streams_or_lists_or_prints_json(server: FakeServer) -> None:
    one = on(server, "generate", "Hi", "--score", "rule", "--rule", "no-insults", "--chat", "--max-new-tokens", "5")
    assert one.stdout == "ab\n"
    assert "policy@7 generation 3, 3 tokens, stop_string" in one.stderr
    assert "no-insults broken 0.250" in one.stderr
    assert server.requests["Generate"][0].prompts[0].WhichOneof("source") == "chat"
    assert on(server, "generate", "Hi", "-n", "2").stdout.count("policy@7") == 2
    several = on(server, "generate", "Hi", "-n", "2", "--score", "preference", "--score", "rule", "--rule", "no-insults").stdout
    assert several.count("\npreference@1 (head): 1.0000 (raw 1.5000, bias 0.5000)\n") == 2, "they were asked for and not shown"
    assert several.count("\nrule@1 (head): no-insults broken 0.250") == 2
    plain = json.loads(on(server, "generate", "Hi", "-n", "2", "--score", "value", "--json").stdout)
    assert plain[0]["finish_reason"] == "stop_string"
    assert plain[0]["scores"]["value"]["values"] == pytest.approx([0.1, 0.2, 0.3])


def test_score_prints_every_head(server: FakeServer) -> None:
    heads = [part for head in ("reference", "preference", "value", "rule") for part in ("--head", head)]
    lines = on(server, "score", "p", "c", *heads, "--rule", "no-insults").stdout.splitlines()
    assert lines[0] == "reference@1 (head): log-prob -6.000 of 3 tokens"
    assert len(lines) == 4


def test_a_transcript_format_is_named_with_what_is_wrong(server: FakeServer) -> None:
    drawn = on(server, "generate", "Hi", "--chat", "--format", "sparrow", "--reply-role", "agent")
    assert "not valid in sparrow@1: foreign_opening" in drawn.stderr
    prompt = server.requests["Generate"][0].prompts[0]
    assert (prompt.format, prompt.reply_role, prompt.WhichOneof("source")) == ("sparrow", "agent", "chat")
    scored = on(server, "score", "p", "c", "--head", "value", "--format", "sparrow")
    assert scored.stdout.endswith("\nnot valid in sparrow@1: wrong_end, empty\n")
    assert "valid" not in on(server, "score", "p", "c", "--head", "value").stdout


def test_configurations_are_listed_and_printed(server: FakeServer) -> None:
    listed = on(server, "configurations").stdout
    assert "rule_set" in listed
    assert "example-rules@2" in listed
    assert on(server, "configurations", "example-rules").stdout == "id: example-rules\nversion: 2\n"
    assert on(server, "configurations", "example-rules@1").stdout == "id: example-rules\nversion: 1\n"
    assert on(server, "configurations", "sparrow@1", "--kind", "recipe").stdout == "id: sparrow\n"
    assert_one_error(on(server, "configurations", "sparrow"), "several kinds: recipe, transcript_format", "hint: give --kind")
    assert_one_error(on(server, "configurations", "nothing"), "no such configuration file: 'nothing'")
    plain = json.loads(on(server, "configurations", "example-rules@1", "--json").stdout)
    assert plain["rules"] == [{"id": "no-insults", "text": "Be kind."}]
    assert on(server, "configurations", "list").stdout == listed


def test_configurations_are_added_and_retired(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("id: terse\n")
    (tmp_path / "b.yaml").write_text("id: loud\n")
    added = on(server, "configurations", "add", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"))
    assert added.stdout == "recipe terse@1\n" * 2
    assert [each.content for each in server.requests["AddConfiguration"]] == ["id: terse\n", "id: loud\n"]
    assert json.loads(on(server, "configurations", "add", str(tmp_path / "a.yaml"), "--json").stdout)[0]["added"] is True
    assert_one_error(on(server, "configurations", "add", str(tmp_path / "c.yaml")), "No such file or directory")
    server.failures["AddConfiguration"] = [rich_error(grpc.StatusCode.INVALID_ARGUMENT, "the content: form is missing")]
    assert_one_error(on(server, "configurations", "add", str(tmp_path / "b.yaml")), f"{tmp_path / 'b.yaml'}: the content: form is missing")
    assert on(server, "configurations", "retire", "terse@1").stdout == "retired terse@1\n"


def test_recipes_and_the_best(server: FakeServer) -> None:
    best = on(server, "generate", "Hi", "-n", "4", "--recipe", "sparrow", "--best", "2", "--rule", "no-insults")
    assert [line for line in best.stdout.splitlines() if line.startswith("---")] == [
        f"--- {index} policy@7 generation 3, 3 tokens, stop_string, "
        f"reward (recipe sparrow@1): {index}.0000, {index - 0.75:.4f} with KL, rank {9 - index}"
        for index in (3, 2)
    ]
    sent = server.requests["Generate"][0]
    assert (sent.select.top, sent.score.recipe) == (2, "sparrow")
    assert "reward (recipe sparrow@1): none, the sample was aborted" in on(server, "generate", "Hi", "--recipe", "sparrow").stderr
    assert on(server, "score", "p", "c", "--recipe", "kl").stdout.splitlines() == [
        "reward (recipe kl@1): 1.0000, 0.2500 with KL, rank 8",
        "  kl 1.5000 (times -0.5, in the reward with KL alone)",
        "  preference 0.5000 (times 2)",
    ]
    plain = json.loads(on(server, "generate", "Hi", "--recipe", "kl", "--json").stdout, parse_constant=pytest.fail)
    assert plain[0]["reward"]["reward"] is None


def test_heads_commands(server: FakeServer, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    weights = {name: np.ones(shape, np.float32) for name, shape in HEAD_SHAPES.items()}
    (source / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    assert on(server, "heads", "push", "policy", str(source), "--activate").stdout.startswith("policy@1\n2 tensors sent")
    assert on(server, "heads", "pull", "policy@1", str(tmp_path / "out")).stdout == f"policy@1: 2 tensors in {tmp_path / 'out'}\n"
    assert_one_error(on(server, "heads", "pull", "policy", str(tmp_path / "out")), "not an empty folder")
    assert safetensors.numpy.load_file(tmp_path / "out" / "head.safetensors").keys() == weights.keys()
    assert on(server, "heads", "copy", "policy@1", "reference").stdout == "reference@5\n"
    activated = on(server, "heads", "activate", "policy@1", "value@2", "--note", "r1").stdout
    assert "generation 4 from 3" in activated
    assert "running requests: 2 stay on older versions, 3 follow, 1 ended" in activated
    assert dict(server.requests["ActivateHeads"][1].heads) == {"policy": 1, "value": 2}
    assert "generation 5" in on(server, "heads", "rollback").stdout
    assert on(server, "heads", "delete", "policy@1", "value@2").stdout == "deleted policy@1\ndeleted value@2\n"
    assert "policy@2" in on(server, "heads", "list").stdout
    shown = on(server, "heads", "show", "policy@7").stdout.splitlines()
    assert [line.split() for line in shown[:1]] == [["head", "policy@7"]]
    assert "3 (start)" in shown[-1], "the generation that it was active in"
    assert on(server, "heads", "label", "policy@1", "best").stdout == "policy@1: best\n"
    assert on(server, "heads", "unlabel", "policy@1", "best").stdout == "policy@1: no labels\n"
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


def test_health_is_an_exit_status(server: FakeServer) -> None:
    assert on(server, "health").stdout == "SERVING\n"
    server.is_serving = False
    assert_one_error(on(server, "health", "--timeout", "0.3"), "not ready after 0.3 s: NOT_SERVING")
    assert_one_error(polyhead("health", "--timeout", "0.3", "--server", "127.0.0.1:1"), "not ready after 0.3 s")
    server.is_serving = True
    of_two = polyhead("health", "--timeout", "0.3", "--server", f"{server.target},127.0.0.1:1")
    assert_one_error(of_two, "127.0.0.1:1: the server is not ready")


def test_environment_names_the_server(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_SERVER", server.target)
    monkeypatch.setenv("POLYHEAD_TOKEN", "s3cret")
    assert polyhead("heads", "history").exit_code == 0
    assert server.metadata["authorization"] == "Bearer s3cret"


def test_missing_extras_say_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(main, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 1
    assert "pip install 'polyhead[cli]'" in capsys.readouterr().err
    monkeypatch.setattr(session, "find_spec", lambda name: None)
    assert_one_error(polyhead("split", "a", "b"), "pip install 'polyhead[server]'")
    monkeypatch.setitem(sys.modules, "polyhead.server.main", None)
    assert_one_error(polyhead("serve", "--port", "1"), "pip install 'polyhead[server]'")


@pytest.mark.parametrize(("command", "is_silent"), [("status", True), ("serve", False)])
def test_grpc_writes_no_lines_of_its_own_before_an_error(monkeypatch: pytest.MonkeyPatch, command: str, is_silent: bool) -> None:
    """A wrong certificate was four lines from the C core, then our own. A server keeps them: its log is where they are looked for."""
    monkeypatch.setattr(sys, "argv", ["polyhead", command])
    monkeypatch.setattr(app, "build_app", lambda arguments: lambda: None)
    monkeypatch.setenv("GRPC_VERBOSITY", "")
    monkeypatch.delenv("GRPC_VERBOSITY")
    main.main()
    assert (os.environ.get("GRPC_VERBOSITY") == "NONE") is is_silent


def test_serve_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from polyhead.client.cli.app import build_app; build_app(['heads', 'list']); "
        "sys.exit(any(name.startswith(('polyhead.server', 'torch')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
