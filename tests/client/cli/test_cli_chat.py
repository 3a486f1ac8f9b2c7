"""`polyhead chat`: turns go on from the last reply; and what `generate` says of a model that can talk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
from typer.testing import CliRunner

from polyhead.client.cli import app as app_module
from tests.client.fake_server import FakeServer
from tests.client.fake_state import rich_error


def chat(server: FakeServer, typed: str, *arguments: str) -> Any:
    return CliRunner().invoke(app_module.build_app(("chat",)), ["chat", *arguments, "--server", server.target], input=typed)


def test_every_line_is_a_turn_that_goes_on_from_the_last(server: FakeServer) -> None:
    """Each turn's prompt is the ids of the one before, so that the server finds them in its cache."""
    done = chat(server, "Hi\n\nAnd now?\n/new\nHo\n/quit\nnever\n", "--system", "Be brief.")
    assert done.exit_code == 0, done.output
    assert done.stdout == "ab\nab\nab\n"
    first, second, third = (request.prompts[0] for request in server.requests["Generate"])
    assert [(each.role, each.content) for each in first.chat.messages] == [("system", "Be brief."), ("user", "Hi")]
    assert (list(second.continue_from.prompt_token_ids), list(second.continue_from.token_ids)) == ([10, 11], [1, 2, 3])
    assert [(each.role, each.content) for each in second.continue_from.messages] == [("user", "And now?")]
    assert third.WhichOneof("source") == "chat", "/new begins a new conversation"
    assert "2 of 2 prompt tokens cached" in done.stderr


def test_a_message_alone_is_one_turn(server: FakeServer) -> None:
    done = chat(server, "", "Hi", "--temperature", "0", "--json")
    assert json.loads(done.stdout)["text"] == "ab"
    (request,) = server.requests["Generate"]
    assert (request.arms[0].sampling.temperature, request.prompts[0].chat.messages[0].content) == (0, "Hi")


def test_a_turn_that_fails_is_forgotten(server: FakeServer) -> None:
    refusal = rich_error(grpc.StatusCode.INVALID_ARGUMENT, "prompt and reply together have 9000 tokens")
    server.failures["Generate"] = [refusal]
    assert chat(server, "Hi\n").exit_code == 1, "a first turn's error ends it: nothing else would go better"
    assert chat(server, "Hi\nAnd?\n").exit_code == 0
    fine = server.requests["Generate"][-1]
    server.requests.clear()
    typed = "one\ntwo\nthree\n"
    server.failures["Generate"] = []

    async def fail_second(method: str, request: Any, context: Any) -> None:
        server.requests[method].append(request)
        if method == "Generate" and len(server.requests[method]) == 2:
            await context.abort(*refusal)

    server._took = fail_second  # type: ignore[method-assign]
    done = chat(server, typed)
    assert done.exit_code == 0
    assert "this turn is left out" in done.stderr
    third = server.requests["Generate"][2].prompts[0].continue_from
    assert list(third.token_ids) == list(fine.prompts[0].continue_from.token_ids)


def test_generate_says_that_a_chat_model_was_given_plain_text(server: FakeServer) -> None:
    """It drew gibberish, as plain text is what it takes, and said nothing of how to talk with the model."""
    runner, app = CliRunner(), app_module.build_app(("generate",))
    said = "use `polyhead chat` for a conversation"
    assert said in runner.invoke(app, ["generate", "Hi", "--server", server.target]).stderr
    assert said not in runner.invoke(app, ["generate", "Hi", "--chat", "--server", server.target]).stderr
    server.failures["Tokenize"] = [rich_error(grpc.StatusCode.FAILED_PRECONDITION, "no chat template")]
    assert said not in runner.invoke(app, ["generate", "Hi", "--server", server.target]).stderr


def test_score_reads_json_lines(server: FakeServer, tmp_path: Path) -> None:
    data = tmp_path / "refs.jsonl"
    data.write_text("".join(json.dumps({"prompt": "p", "completion": f"c{index}"}) + "\n" for index in range(70)))
    runner, app = CliRunner(), app_module.build_app(("score",))
    done = runner.invoke(app, ["score", "--data", str(data), "--head", "value", "--server", server.target])
    assert done.stdout.count("value@1 (head): ") == 70
    assert [len(request.items) for request in server.requests["Score"]] == [64, 6]
    refused = runner.invoke(app, ["score", "--head", "value", "--server", server.target])
    assert "give a prompt and a completion, or --data" in refused.stderr
    broken = rich_error(grpc.StatusCode.INVALID_ARGUMENT, "too long", field="items[2].prompt")
    server.failures["Score"] = []
    data.write_text(data.read_text() + "\n")

    async def fail_second(method: str, request: Any, context: Any) -> None:
        if len(request.items) == 6:
            await context.abort(*broken)

    server._took = fail_second  # type: ignore[method-assign]
    refused = runner.invoke(app, ["score", "--data", str(data), "--head", "value", "--server", server.target])
    assert "line 67 of --data: too long" in refused.stderr
