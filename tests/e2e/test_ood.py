"""Out-of-distribution scores through a real server: fitted once, returned with every prompt, moved by no swap and no restart."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, from_rpc_error
from polyhead.client.local import LocalServer
from polyhead.client.wire import trunk_requests
from polyhead.v1 import trunk_pb2_grpc
from polyhead.v1.trunk_pb2 import FitOodHeader, FitOodPrompts, FitOodRequest
from polyhead.v1.types_pb2 import Prompt, TokenIds
from tests.e2e.support import (
    FIRST_TOKEN,
    MODEL_WORK,
    PROMPT,
    WIDTH,
    assert_blocks_returned,
    call,
    constant_policy,
    constant_value,
    error_of,
    eventually,
    retry_infos,
    serving,
)
from tests.e2e.tiny import CONTEXT, VOCAB

TAP, SPLIT = 1, 2
STRANGE = [250 + index % 8 for index in range(24)]  # bytes that no normal prompt holds


def normal(seed: int) -> list[int]:
    """A prompt of a few letters over and over: what the fits are made from."""
    return [1, *np.random.default_rng(seed).integers(70, 78, 24).tolist()]


PROMPTS = [normal(seed) for seed in range(100)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ood") / "store"


@pytest.fixture(scope="module")
def server(tiny_model: Path, store: Path) -> Iterator[LocalServer]:
    with serving(tiny_model, store, "--tap-layer", str(TAP)) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        opened.fit_ood("helpful", PROMPTS)
        yield opened
        assert_blocks_returned(opened)


def score_of(client: Client, prompt: Any, **options: Any) -> float:
    ood = client.score([(prompt, [80, 81])], **{"ood": "helpful", **options})[0].ood
    assert ood is not None
    return ood.score


def by_hand(client: Client, rows: np.ndarray, row: np.ndarray, shrinkage: float = 0.01) -> float:
    """The formula as it is written, with plain inverses."""
    covariance = np.cov(rows, rowvar=False)
    covariance += shrinkage * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    offset = row - rows.mean(axis=0)
    return float(offset @ np.linalg.inv(covariance) @ offset - offset @ np.diag(1 / np.diag(covariance)) @ offset)


# states


def test_encode_gives_the_tap_layer_or_the_boundary_whole_or_pooled(client: Client) -> None:
    assert (client.trunk().tap_layer, client.trunk().split_layer) == (TAP, SPLIT)
    whole = {layer: client.encode(PROMPT, layer=layer) for layer in (0, TAP, SPLIT)}
    assert np.array_equal(whole[0], whole[SPLIT])
    assert not np.allclose(whole[0], whole[TAP])
    for layer, states in whole.items():
        assert states.shape == (len(PROMPT), WIDTH)
        assert np.allclose(client.encode(PROMPT, layer=layer, pooling="mean"), states.mean(axis=0), atol=1e-5)
        assert np.array_equal(client.encode(PROMPT, layer=layer, pooling="last"), states[-1])
    two = client.encode([PROMPT, PROMPT[:3]], layer=TAP, pooling="last")
    assert [row.tolist() for row in two] == [whole[TAP][-1].tolist(), whole[TAP][2].tolist()]


def test_a_layer_that_is_not_kept_is_refused_naming_those_that_are(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=f"layer 3 are not kept: the server has those at {TAP} and {SPLIT}") as caught:
        client.encode(PROMPT, layer=3)
    assert caught.value.field == "layer"
    with pytest.raises(InvalidArgument, match="layer 3") as caught:
        client.fit_ood("x", PROMPTS, layer=3)
    assert caught.value.field == "header.layer"


# fits and scores


@pytest.mark.parametrize("options", [{}, {"layer": SPLIT}, {"pooling": "last", "shrinkage": 0.3}, {"shrinkage": 0.0}])
def test_scores_are_the_formulas(client: Client, options: dict[str, Any]) -> None:
    """Through the engine, the store and the wire, against the paper's formula on states that the client encodes itself."""
    fit = client.fit_ood("formula", PROMPTS, **options)
    pooled = {"layer": options.get("layer", TAP), "pooling": options.get("pooling", "mean")}
    assert (fit.layer, fit.pooling, fit.num_prompts) == (pooled["layer"], pooled["pooling"], len(PROMPTS))
    rows = np.stack(client.encode(PROMPTS, **pooled)).astype(np.float64)
    shrinkage = options.get("shrinkage", 0.01)
    for prompt in (normal(1000), STRANGE, PROMPTS[0]):
        wanted = by_hand(client, rows, client.encode(prompt, **pooled).astype(np.float64), shrinkage)
        item = client.score([(prompt, [80])], ood="formula")[0]
        assert item.ood is not None
        assert (item.ood.fit, item.ood.layer) == (fit.ref, pooled["layer"])
        assert item.ood.score == pytest.approx(wanted, rel=1e-3, abs=1e-2)
    own = [by_hand(client, rows, row, shrinkage) for row in rows]
    assert (fit.mean_score, fit.std_score) == pytest.approx((np.mean(own), np.std(own)), rel=1e-3, abs=1e-3)


def test_strange_prompts_score_higher_than_normal_ones(client: Client) -> None:
    fresh = [score_of(client, normal(seed)) for seed in range(500, 520)]
    assert score_of(client, STRANGE) > 2 * max(fresh)


def test_generate_and_score_return_it_beside_heads_or_alone(client: Client) -> None:
    alone = score_of(client, PROMPT)
    item = client.score([(PROMPT, [80, 81])], heads=["reference", "value"], ood="helpful@1")[0]
    assert item.ood is not None
    assert (item.ood.score, item.ood.fit, set(item.scores)) == (alone, "helpful@1", {"reference", "value"})
    samples = client.generate([PROMPT, STRANGE], n=3, max_new_tokens=4, ignore_eos=True, ood="helpful")
    assert {sample.ood.score for sample in samples if sample.prompt_index == 0 and sample.ood} == {alone}
    assert len({sample.ood.score for sample in samples if sample.ood}) == 2
    assert client.generate([PROMPT], max_new_tokens=2)[0].ood is None
    stream = client.stream(PROMPT, max_new_tokens=2, ood="helpful")
    assert list(stream)
    assert stream.sample.ood is not None
    assert stream.sample.ood.score == alone


def test_a_score_costs_the_prompts_tokens_and_no_head(client: Client) -> None:
    before = client.status().counters
    score_of(client, [*PROMPT, 200, 201, 202], cache_salt="counted")
    after = client.status().counters
    assert after["trunk_tokens"] - before["trunk_tokens"] == len(PROMPT) + 3
    assert after["head_tokens"] == before["head_tokens"]


def test_no_activation_moves_a_score(client: Client) -> None:
    """Bit for bit, from the cache and cold: the trunk below every head is the same."""
    before = [score_of(client, PROMPT), score_of(client, PROMPT, cache_salt="before")]
    versions = {
        "policy": client.push_head("policy", constant_policy(client, FIRST_TOKEN), kind="policy"),
        "value": client.push_head("value", constant_value(client, 3.0), kind="value"),
        "preference": client.push_head("preference", constant_value(client, 5.0), kind="preference"),
    }
    client.activate(versions)
    assert [score_of(client, PROMPT), score_of(client, PROMPT, cache_salt="after")] == before
    client.rollback()
    assert score_of(client, PROMPT) == before[0]


# names, versions, repeats


def test_versions_grow_and_the_newest_is_meant(client: Client) -> None:
    first = client.fit_ood("grows", PROMPTS)
    second = client.fit_ood("grows", PROMPTS, pooling="last")
    assert (first.version, second.version) == (1, 2)
    assert [fit.version for fit in client.ood_fits() if fit.name == "grows"] == [1, 2]
    assert score_of(client, PROMPT, ood="grows") == score_of(client, PROMPT, ood="grows@2") != score_of(client, PROMPT, ood="grows@1")


def test_a_repeated_request_gets_the_first_answer(client: Client) -> None:
    first = client.fit_ood("again", PROMPTS, request_id="fit-1")
    before = client.status().counters["requests"]
    assert client.fit_ood("again", PROMPTS, request_id="fit-1") == first
    assert client.status().counters["requests"] == before
    for name, prompts in (("other", PROMPTS), ("again", PROMPTS[:50])):
        with pytest.raises(AlreadyExists, match="again@1"):
            client.fit_ood(name, prompts, request_id="fit-1")


def test_equal_prompts_make_an_equal_fit(client: Client) -> None:
    """However they are cut into messages, as text, ids or messages."""
    first, second = (client.fit_ood("equal", prompts) for prompts in (PROMPTS, [np.array(prompt) for prompt in PROMPTS]))
    assert (first.mean_score, first.std_score) == (second.mean_score, second.std_score)
    texts = client.fit_ood("texts", [f"Say {word * 3}" for word in "abcdefghijklmnopqrst"])
    assert texts.num_prompts == 20


@pytest.mark.parametrize("options", [{"ood": "nothing"}, {"ood": "helpful@9"}])
def test_unknown_fits_are_not_found(client: Client, options: dict[str, str]) -> None:
    with pytest.raises(NotFound, match=options["ood"]):
        client.score([(PROMPT, [80])], **options)


# callers that crowd, wait and leave


def test_a_full_queue_makes_a_fit_wait(tiny_model: Path, tmp_path: Path) -> None:
    """Half an hour of prompts is not lost because the queue was full for a moment."""
    with (
        serving(tiny_model, tmp_path, max_queue_requests=2, interactive_share=0.0) as server,
        Client(server.address) as client,
        ThreadPoolExecutor(1) as threads,
        client.samples([PROMPT], n=4, max_new_tokens=400, ignore_eos=True) as first,
        client.samples([PROMPT], n=4, max_new_tokens=400, ignore_eos=True) as second,
    ):
        readers = [threading.Thread(target=next, args=(samples, None)) for samples in (first, second)]
        for reader in readers:
            reader.start()
        eventually(lambda: client.status().counters["requests"] == 2, what="a full queue")
        fit = threads.submit(client.fit_ood, "patient", PROMPTS)
        eventually(lambda: client.status().counters["rejected_requests"] > 0, what="a refused part of the fit")
        for reader in readers:
            reader.join(60)
        first.close()
        second.close()
        assert fit.result(60).num_prompts == len(PROMPTS)


def test_fits_are_bounded_and_one_that_is_left_keeps_nothing(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path, push_idle_s=3.0) as server, Client(server.address) as client:
        with grpc.insecure_channel(server.address) as channel:
            forever = threading.Event()

            def slow() -> Iterator[FitOodRequest]:
                yield header(num_prompts=2 * len(PROMPTS))
                yield some(*[ids(*prompt) for prompt in PROMPTS])
                forever.wait(30)

            running = [trunk_pb2_grpc.TrunkServiceStub(channel).FitOod.future(slow(), timeout=30) for _ in range(2)]
            eventually(lambda: client.status().counters["requests"] >= 4, what="two fits under way")  # 100 prompts: 64 and 36
            third = error_of(lambda: call(channel, "TrunkService/FitOod", header(), some(ids(5))))
            assert third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert retry_infos(third)
            running[0].cancel()
            eventually(lambda: running[1].done(), what="the end of a stream that stopped sending")
            assert running[1].code() is grpc.StatusCode.DEADLINE_EXCEEDED
            forever.set()
        assert client.ood_fits() == []
        assert client.fit_ood("bad", PROMPTS).version == 1
        assert_blocks_returned(client)


# restarts


def test_fits_survive_a_restart_and_are_refused_where_they_do_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path, "--tap-layer", str(TAP)) as server, Client(server.address) as client:
        fit = client.fit_ood("helpful", PROMPTS, request_id="fit-1")
        client.fit_ood("edge", PROMPTS, layer=SPLIT)
        before = score_of(client, PROMPT)
    with serving(tiny_model, tmp_path, "--tap-layer", str(TAP)) as server, Client(server.address) as client:
        assert client.ood_fits()[1] == fit
        assert score_of(client, PROMPT) == pytest.approx(before, rel=1e-5)  # the prompt may be computed in other pieces
        assert client.fit_ood("helpful", PROMPTS, request_id="fit-1") == fit
        assert client.fit_ood("helpful", PROMPTS).version == 2
    with serving(tiny_model, tmp_path, "--tap-layer", "0") as server, Client(server.address) as client:
        assert client.trunk().tap_layer == 0
        assert score_of(client, PROMPT, ood="edge") > -1e9
        with pytest.raises(FailedPrecondition, match=f"reads layer {TAP}, the server keeps {SPLIT}\nhint: start it with --tap-layer {TAP}"):
            score_of(client, PROMPT)
        assert client.fit_ood("here", PROMPTS).layer == SPLIT
    dtypes = ("--trunk-dtype", "bfloat16", "--head-dtype", "bfloat16", "--tap-layer", str(TAP))
    with serving(tiny_model, tmp_path, *dtypes) as server, Client(server.address) as client:
        with pytest.raises(FailedPrecondition, match="made at precision float32, the trunk is served at bfloat16"):
            score_of(client, PROMPT, ood="helpful@1")
        assert client.fit_ood("helpful", PROMPTS).precision == "bfloat16"
        assert score_of(client, STRANGE) > score_of(client, normal(1000))


# what is refused, through raw calls


def ids(*token_ids: int) -> Prompt:
    return Prompt(token_ids=TokenIds(ids=token_ids))


def header(**fields: Any) -> FitOodRequest:
    return FitOodRequest(header=FitOodHeader(**{"name": "bad", "num_prompts": len(PROMPTS), **fields}))


def some(*prompts: Prompt) -> FitOodRequest:
    return FitOodRequest(prompts=FitOodPrompts(prompts=prompts))


NAN = float("nan")
BEFORE_WORK: dict[str, tuple[list[FitOodRequest], str]] = {
    "nothing": ([], "header"),
    "no header": ([some(ids(5))], "header"),
    "empty message": ([FitOodRequest()], "header"),
    "two headers": ([header(), header()], "prompts"),
    "bad name": ([header(name="../x")], "header.name"),
    "name with a version": ([header(name="x@1")], "header.name"),
    "layer 7": ([header(layer=7)], "header.layer"),
    "pooling 9": ([header(pooling=9)], "header.pooling"),
    "shrinkage nan": ([header(shrinkage=NAN)], "header.shrinkage"),
    "shrinkage -1": ([header(shrinkage=-1)], "header.shrinkage"),
    "shrinkage 2": ([header(shrinkage=2)], "header.shrinkage"),
    "request id": ([header(request_id="x" * 201)], "request_id"),
    "a number that is not declared": ([header(num_prompts=0), some(*[ids(5)] * 16)], "header.num_prompts"),
    "15 declared": ([header(num_prompts=15), some(*[ids(5)] * 15)], "header.num_prompts"),
    "as many as dimensions, no shrinkage": ([header(num_prompts=WIDTH, shrinkage=0)], "header.num_prompts"),
    "100001 declared": ([header(num_prompts=100_001)], "header.num_prompts"),
    "no prompts at all": ([header()], "header.num_prompts"),
    "more than declared": ([header(num_prompts=16), some(*[ids(5)] * 17)], "header.num_prompts"),
    "a message without prompts": ([header(), some()], "prompts"),
    "257 prompts in a message": ([header(), some(*[ids(5)] * 257)], "prompts"),
    "unset prompt": ([header(), some(ids(5), Prompt())], "prompts[1]"),
    "prompt id": ([header(), some(ids(5), ids(5, VOCAB))], "prompts[1].token_ids.ids[1]"),
    "prompt too long": ([header(), some(ids(*[5] * (CONTEXT + 1)))], "prompts[0]"),
}


def assert_refused(server: LocalServer, messages: list[FitOodRequest], field: str) -> str:
    with grpc.insecure_channel(server.address) as channel:
        error = error_of(lambda: call(channel, "TrunkService/FitOod", *messages))
    refused = from_rpc_error(error, "server")
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", field)
    return refused.message


@pytest.mark.parametrize("name", BEFORE_WORK)
def test_bad_fits_are_refused_before_any_model_work(server: LocalServer, client: Client, name: str) -> None:
    before = [client.status().counters[counter] for counter in MODEL_WORK]
    assert_refused(server, *BEFORE_WORK[name])
    assert [client.status().counters[counter] for counter in MODEL_WORK] == before
    assert "bad" not in {fit.name for fit in client.ood_fits()}


def test_too_few_or_too_similar_prompts_are_refused(server: LocalServer, client: Client) -> None:
    few = [ids(*prompt) for prompt in PROMPTS]
    field = "header.num_prompts"
    assert "at least 16 prompts: 15" in assert_refused(server, [header(num_prompts=15), some(*few[:15])], field)
    said = assert_refused(server, [header(num_prompts=WIDTH, shrinkage=0), some(*few[:WIDTH])], field)
    assert said.startswith(f"a fit needs at least {WIDTH + 1} prompts: {WIDTH}")
    assert "all alike" in assert_refused(server, [header(num_prompts=40), some(*[few[0]] * 40)], "prompts")
    assert "bad" not in {fit.name for fit in client.ood_fits()}
    said = assert_refused(server, [header(), some(*few[:60]), some(*few[60:99])], field)
    assert said == "100 prompts were declared, the stream ended after 99"
    said = assert_refused(server, [header(num_prompts=40), some(*few[:40]), some(few[0])], field)
    assert said == "more prompts came than were declared: 40"
    second = assert_refused(server, [header(), some(*few[:20]), some(few[0], Prompt())], "prompts[21]")
    assert "not set" in second


def test_a_request_for_nothing_names_the_field(server: LocalServer) -> None:
    with Client(server.address) as client, pytest.raises(InvalidArgument) as caught:
        client.score([(PROMPT, [80])])
    assert caught.value.field == "score.heads"
    with Client(server.address) as client, pytest.raises(InvalidArgument) as caught:
        client.score([(PROMPT, [80])], ood="../x")
    assert caught.value.field == "score.ood"


def test_unknown_pooling_is_refused(server: LocalServer) -> None:
    message = trunk_requests.encode([PROMPT], "")
    message.pooling = 7  # type: ignore[assignment]
    with grpc.insecure_channel(server.address) as channel:
        error = error_of(lambda: call(channel, "TrunkService/Encode", message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
