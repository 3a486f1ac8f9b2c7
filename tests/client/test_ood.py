"""Fits, pooled states and out-of-distribution scores through a fake server, and the files that the command line reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polyhead.client import Client, errors
from polyhead.client.fitting import MAX_MESSAGE_BYTES
from polyhead.v1 import trunk_pb2
from tests.client.cli.test_cli import assert_one_error, on
from tests.client.fake_messages import D_MODEL
from tests.client.fake_server import FakeServer
from tests.client.fake_state import rich_error

TURNS = [{"role": "user", "content": "Hi"}]


def test_a_fit_is_sent_in_messages_that_the_server_takes(client: Client, server: FakeServer) -> None:
    fit = client.fit_ood("helpful", ["text", [1, 2], TURNS, *["x"] * 600], layer=3, pooling="last", shrinkage=0.0, request_id="r")
    assert (fit.ref, fit.pooling, fit.num_prompts, fit.mean_score) == ("helpful@2", "last", 603, 1.0)
    header, *parts = server.requests["FitOod"][0]
    assert (header.header.name, header.header.layer, header.header.request_id) == ("helpful", 3, "r")
    assert header.header.num_prompts == 603
    assert (header.header.pooling, header.header.HasField("shrinkage")) == (trunk_pb2.POOLING_LAST, True)
    assert [len(part.prompts.prompts) for part in parts] == [256, 256, 91]
    assert [prompt.WhichOneof("source") for prompt in parts[0].prompts.prompts[:3]] == ["text", "token_ids", "chat"]
    assert client.ood_fits() == [fit]


def test_long_prompts_make_more_messages(client: Client, server: FakeServer) -> None:
    client.fit_ood("helpful", ["x" * (MAX_MESSAGE_BYTES // 2)] * 3 + ["y" * MAX_MESSAGE_BYTES])
    assert [len(part.prompts.prompts) for part in server.requests["FitOod"][0][1:]] == [1, 1, 1, 1]


def test_a_refused_fit_is_sent_again_with_the_same_id(client: Client, server: FakeServer) -> None:
    full = rich_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "2 fits are under way", retry_after_s=0.01)
    server.failures["FitOod"] = [full]
    assert client.fit_ood("helpful", ["a", "b"]).num_prompts == 2
    first, second = (messages[0].header.request_id for messages in server.requests["FitOod"])
    assert first == second != ""


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (("x", "one"), {}, TypeError, "prompts must be a list of prompts"),
        (("x", []), {}, errors.InvalidArgument, "prompts is empty"),
        (("x", ["a", 3.5]), {}, TypeError, r"prompts\[1\] must be"),
        (("x", ["a"]), {"pooling": "max"}, errors.InvalidArgument, "pooling must be one of mean, last: 'max'"),
        (("x", ["a"]), {"layer": -1}, errors.InvalidArgument, "layer must be 0 or a layer's number: -1"),
        (("x", ["a"]), {"layer": "middle"}, TypeError, "layer must be an int: str"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    client: Client, server: FakeServer, arguments: tuple[Any, ...], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        client.fit_ood(*arguments, **options)
    assert not server.requests["FitOod"]


def test_encode_pools_and_names_its_layer(client: Client, server: FakeServer) -> None:
    assert client.encode([5, 6], layer=2, pooling="mean").tolist() == [5.0] * D_MODEL
    assert [row.shape for row in client.encode([[5, 6], [7]], pooling="last")] == [(D_MODEL,)] * 2
    sent = server.requests["Encode"]
    assert [(each.layer, each.pooling) for each in sent] == [(2, trunk_pb2.POOLING_MEAN), (0, trunk_pb2.POOLING_LAST)]
    with pytest.raises(errors.InvalidArgument, match="pooling must be one of"):
        client.encode([5], pooling="max")  # type: ignore[arg-type]


def test_a_score_may_be_a_fits_alone(client: Client, server: FakeServer) -> None:
    item = client.score([("p", "c")], ood="helpful")[0]
    assert item.ood is not None
    assert (item.ood.fit, item.ood.layer, item.ood.score, item.scores) == ("helpful@2", 1, 2.5, {})
    assert client.score([("p", "c")], heads=["value"])[0].ood is None
    assert [each.score.ood for each in server.requests["Score"]] == ["helpful", ""]
    client.generate(["x"], ood="helpful@2")
    assert server.requests["Generate"][0].score.ood == "helpful@2"


# the command line


def lines_of(path: Path, *lines: Any) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_fit_and_list(server: FakeServer, tmp_path: Path) -> None:
    data = lines_of(tmp_path / "p.jsonl", {"prompt": "a\u2028b", "id": 1}, "", {"messages": TURNS}, {"prompt": [1, 2]})
    Path(data).write_text("\ufeff" + Path(data).read_text(encoding="utf-8"), encoding="utf-8")  # as some editors begin a file
    shown = on(server, "ood", "fit", "helpful", "--data", data, "--pooling", "last").stdout.splitlines()
    assert shown[0] == "helpful@2: 3 prompts, layer 1, last of their tokens; they score 1.00 ± 0.50"
    assert shown[1].startswith(f"few prompts for {D_MODEL} dimensions")
    prompts = server.requests["FitOod"][0][1].prompts.prompts
    assert [prompt.WhichOneof("source") for prompt in prompts] == ["text", "chat", "token_ids"]
    assert "helpful@2" in on(server, "ood", "list").stdout
    assert json.loads(on(server, "ood", "list", "--json").stdout)[0]["num_prompts"] == 3


def test_score_prints_it(server: FakeServer) -> None:
    assert on(server, "score", "p", "c", "--ood", "helpful").stdout == "helpful@2: out-of-distribution score of the prompt 2.5000\n"
    assert len(on(server, "score", "p", "c", "--head", "value", "--ood", "helpful").stdout.splitlines()) == 2


BAD_LINES = {
    "not json": ("{", "not JSON"),
    "a list": ("[1]", "not a JSON object"),
    "neither": ({"text": "x"}, 'either "prompt" or "messages"'),
    "both": ({"prompt": "x", "messages": TURNS}, 'either "prompt" or "messages"'),
    "a number": ({"prompt": 7}, '"prompt" must be a text'),
    "messages as a prompt": ({"prompt": TURNS}, '"prompt" must be a text'),
    "ids as messages": ({"messages": [1]}, '"messages" must be a list of messages'),
    "a text as messages": ({"messages": "x"}, '"messages" must be a list of messages'),
    "an unknown role": ({"messages": [{"role": "judge", "content": "x"}]}, "must be one of"),
    "no ids": ({"prompt": []}, "prompt is empty"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_are_named(server: FakeServer, tmp_path: Path, name: str) -> None:
    line, message = BAD_LINES[name]
    data = lines_of(tmp_path / "p.jsonl", {"prompt": "a", "completion": "b"}, "", line)
    assert_one_error(on(server, "ood", "fit", "x", "--data", data), "line 3 of --data", message)
    assert_one_error(on(server, "heads", "calibrate", "preference", "--data", data), "line 3 of --data", message)
    assert not server.requests["FitOod"]


@pytest.mark.parametrize("completion", [None, "", 7, [], [1.5]])
def test_references_need_a_completion(server: FakeServer, tmp_path: Path, completion: Any) -> None:
    data = lines_of(tmp_path / "p.jsonl", {"prompt": "a", "completion": completion})
    assert_one_error(on(server, "heads", "calibrate", "preference", "--data", data), 'line 1 of --data: "completion"')


def test_files_that_cannot_be_read(server: FakeServer, tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe")
    for path, message in ((tmp_path / "none", "cannot read --data"), (empty, "holds no lines"), (binary, "not UTF-8")):
        assert_one_error(on(server, "ood", "fit", "x", "--data", str(path)), message)
        assert_one_error(on(server, "heads", "calibrate", "preference", "--data", str(path)), message)


def test_what_the_server_refuses_is_named_by_its_line(server: FakeServer, tmp_path: Path) -> None:
    data = lines_of(tmp_path / "p.jsonl", {"prompt": "a"}, "", {"prompt": "b"})
    server.failures["FitOod"] = [rich_error(grpc.StatusCode.INVALID_ARGUMENT, "9999 tokens", field="prompts[1].text")]
    assert_one_error(on(server, "ood", "fit", "x", "--data", data), "line 3 of --data: 9999 tokens")
    server.failures["FitOod"] = [rich_error(grpc.StatusCode.INVALID_ARGUMENT, "at least 16 prompts: 2", field="prompts")]
    assert_one_error(on(server, "ood", "fit", "x", "--data", data), "at least 16 prompts: 2")


def test_arrays_are_prompts_too(client: Client, server: FakeServer) -> None:
    client.fit_ood("x", [np.array([1, 2]), np.array([3])])
    assert [list(prompt.token_ids.ids) for prompt in server.requests["FitOod"][0][1].prompts.prompts] == [[1, 2], [3]]
