"""Swaps under traffic. Every make k of the heads betrays itself: its policy gives token FIRST_TOKEN + k, its value head says k."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from polyhead.client import Client, Sample
from polyhead.client.errors import Conflict, FailedPrecondition
from polyhead.client.local import LocalServer
from polyhead.v1.heads_pb2 import ActivateHeadsRequest, Chunk, HeadManifest, PushHeader, PushHeadRequest
from tests.e2e.support import (
    FIRST_TOKEN,
    PROMPT,
    WIDTH,
    assert_blocks_returned,
    assert_reveals_nothing,
    call,
    constant_policy,
    details_of,
    error_of,
    eventually,
    fingerprint,
    fresh_salt,
    numbers_of,
    push_pair,
    serving,
    wait_until_running,
)
from tests.e2e.tiny import VOCAB

NUM_SWAPS = 8
MAX_IDLE = 2
POLICY, VALUE = 1, 4  # HEAD_KIND_*


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    store = tmp_path_factory.mktemp("swap") / "store"
    with serving(tiny_model, store, "--keep-versions", "100", max_idle_per_name=MAX_IDLE) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=120) as opened:
        yield opened
        assert_blocks_returned(opened)


@dataclass
class Traffic:
    """Client threads that generate and score until told to stop, and what they saw."""

    client: Client
    is_over: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[dict[str, int], dict[str, str], set[int]]] = field(default_factory=list)  # versions, digests, makes
    failures: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self.threads = [threading.Thread(target=self._repeat, args=(work,)) for work in (self.generate, self.generate, self.score)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join(60)

    def _repeat(self, work: Callable[[int], None]) -> None:
        turn = 0
        while not self.is_over.is_set():
            try:
                work(turn := turn + 1)
            except BaseException as error:
                self.failures.append(error)
                return

    def generate(self, turn: int) -> None:
        for sample in self.client.generate([PROMPT[: 2 + turn % 8]], n=2, max_new_tokens=4 + turn % 20, score=["value"], seed=turn):
            value = sample.scores["value"]
            assert len(sample.token_ids) == 4 + turn % 20
            assert [span.version for span in sample.spans] == [sample.head_version]
            digests = {"policy": sample.digest, "value": value.digest}
            self._saw(sample.served.head_versions, digests, numbers_of(sample.token_ids, [*value.values, value.bootstrap_value]))

    def score(self, turn: int) -> None:
        """The completion holds every make's token once: the active policy likes one of them."""
        completion = [FIRST_TOKEN + number for number in range(2 * NUM_SWAPS)]
        for item in self.client.score([(PROMPT, completion), (PROMPT[: 1 + turn % 9], completion)], heads=["policy", "value"]):
            policy, value = item.scores["policy"], item.scores["value"]
            digests = {"policy": policy.digest, "value": value.digest}
            liked = FIRST_TOKEN + int(np.argmax(policy.logprobs))
            self._saw(item.served.head_versions, digests, numbers_of([liked], [*value.values, value.bootstrap_value]))

    def has_seen(self, pair: dict[str, int], first: int) -> bool:
        """Whether an answer from the `first` on was made by this pair."""
        return any(pair.items() <= versions.items() for versions, _, _ in self.seen[first:])

    def _saw(self, versions: dict[str, int], digests: dict[str, str], numbers: set[int]) -> None:
        self.seen.append((versions, digests, numbers))


def test_swaps_under_traffic_fail_nothing_and_mix_nothing(client: Client) -> None:
    """Two heads that change together change together in every answer, and the digest reported is the one that ran."""
    first = client.status().generation
    pairs = [push_pair(client, number) for number in range(NUM_SWAPS)]
    client.activate(pairs[0])
    watched: list[int] = []
    watch = client.watch(after=first)
    watcher = threading.Thread(target=lambda: watched.extend(next(watch).number for _ in range(NUM_SWAPS + 1)))
    watcher.start()
    with Traffic(client) as traffic:
        for pair in [*pairs[1:], pairs[0]]:
            seen_before = len(traffic.seen)
            client.activate(pair)
            eventually(
                lambda pair=pair, first=seen_before: traffic.failures or traffic.has_seen(pair, first), what="traffic on the new heads"
            )
    assert not traffic.failures
    number_of = {pair["policy"]: number for number, pair in enumerate(pairs)}
    value_of = {pair["policy"]: pair["value"] for pair in pairs}
    digest_of = {(head.name, head.version): head.digest for head in client.heads()}
    for versions, digests, numbers in traffic.seen:
        assert numbers == {number_of[versions["policy"]]}
        assert versions["value"] == value_of[versions["policy"]]
        assert digests == {name: digest_of[name, versions[name]] for name in ("policy", "value")}
    assert {next(iter(numbers)) for _, _, numbers in traffic.seen} == set(range(NUM_SWAPS))
    watcher.join(30)
    assert watched == list(range(first + 1, first + NUM_SWAPS + 2))


def test_swaps_leave_no_old_heads_in_memory(client: Client) -> None:
    """After many swaps: the active heads, and at most the limit of idle ones for each name."""
    for number in range(NUM_SWAPS):
        client.activate(push_pair(client, number % 3 + 30))
    status = client.status()
    names = [{reference.partition("@")[0] for reference in head.references} for head in status.resident_heads if not head.active]
    for name in ("policy", "value"):
        assert sum(name in each for each in names) <= MAX_IDLE, names
    assert len(names) <= 2 * MAX_IDLE
    assert len({head.digest for head in client.heads()}) > len(status.resident_heads)


def test_on_swap_abort_returns_what_there_is(client: Client) -> None:
    client.activate(push_pair(client, 1))
    other = push_pair(client, 2)  # before the streams: they may be over while it is sent
    with ThreadPoolExecutor(2) as threads:
        aborted = threads.submit(client.generate, [PROMPT], n=2, max_new_tokens=900, ignore_eos=True, on_swap="abort")
        pinned = threads.submit(client.generate, [PROMPT], n=2, max_new_tokens=600, ignore_eos=True, on_swap="pin")
        wait_until_running(client, 2)
        change = client.activate(other)
        assert (change.num_pinned_requests, change.num_aborted_requests) == (1, 1)
        for sample in aborted.result(60):
            assert (sample.finish_reason, sample.terminated, sample.valid) == ("aborted", False, False)
            assert sample.error
            assert len(sample.token_ids) == len(sample.logprobs) < 900
            assert set(sample.token_ids) <= {FIRST_TOKEN + 1}
        for sample in pinned.result(60):
            assert set(sample.token_ids) == {FIRST_TOKEN + 1}
            assert len(sample.token_ids) == 600
    assert set(client.generate([PROMPT], max_new_tokens=3)[0].token_ids) == {FIRST_TOKEN + 2}


def other_policy(client: Client, seed: int) -> dict[str, np.ndarray]:
    """The first policy with every matrix moved: what another version has read of a text is wrong for this one."""
    generator = np.random.default_rng(seed)
    weights = {name: np.array(value) for name, value in client.pull_head("policy@1").items()}
    moved = {name: value + 0.3 * value.std() * generator.standard_normal(value.shape) for name, value in weights.items()}
    return {name: moved[name].astype(np.float32) if value.ndim == 2 else value for name, value in weights.items()}


def test_streams_follow_several_swaps(client: Client) -> None:
    """8 streams go on with each new version between two tokens; what each version drew is what it says cold about the same ids."""
    versions = [1, *(client.push_head("policy", other_policy(client, seed), kind="policy") for seed in range(3))]
    client.activate({"policy": 1})
    options: dict[str, Any] = {"max_new_tokens": 800, "ignore_eos": True, "cache_salt": fresh_salt()}
    with ThreadPoolExecutor(10) as threads:
        follows = [threads.submit(_last, client.stream(PROMPT, seed=seed, on_swap="follow", **options)) for seed in range(8)]
        pinned = threads.submit(client.generate, [PROMPT], n=2, seed=9, on_swap="pin", **options)
        explicit = threads.submit(client.generate, [PROMPT], head="policy@1", seed=10, on_swap="follow", **options)
        wait_until_running(client, 10)
        for version in [*versions[1:], versions[1], 1]:
            _wait_for_tokens(client, 200)
            change = client.activate({"policy": version})
            assert (change.num_pinned_requests, change.num_aborted_requests, change.num_following_requests) == (2, 0, 8)
        samples = [future.result(120) for future in follows]
        stayed = [*pinned.result(120), *explicit.result(120)]
    assert [sample.finish_reason for sample in [*samples, *stayed]] == ["length"] * 11
    assert all([span.version for span in sample.spans] == [1] for sample in stayed)
    history = {generation.number: generation.heads["policy"] for generation in client.generations()}
    digests = {head.version: head.digest for head in client.heads("policy")}
    for sample in samples:
        assert len(sample.spans) > 1
        assert sample.generation == sample.spans[0].generation
        assert (sample.head_version, sample.digest) == (sample.spans[-1].version, sample.spans[-1].digest) == (1, digests[1])
        assert [span.start for span in sample.spans] == [0, *(span.end for span in sample.spans[:-1])]
        assert sample.spans[-1].end == len(sample.token_ids) == 800
        generations = [span.generation for span in sample.spans]
        assert generations == sorted(set(generations))
        assert all((history[span.generation], digests[span.version]) == (span.version, span.digest) for span in sample.spans)
    _assert_each_span_is_its_versions([*samples, *stayed], client)
    assert {span.version for sample in samples for span in sample.spans} == set(versions)


def _last(stream: Any) -> Sample:
    tokens = [token for piece in stream for token in piece.token_ids]
    assert tokens == stream.sample.token_ids
    return stream.sample


def _wait_for_tokens(client: Client, count: int) -> None:
    drawn = client.status().counters["generated_tokens"]
    eventually(lambda: client.status().counters["generated_tokens"] >= drawn + count, what=f"{count} more tokens")


def _assert_each_span_is_its_versions(samples: list[Sample], client: Client) -> None:
    """Scored whole under the version of each span, in a cache of its own, as a server would that has seen no other version."""
    for version in {span.version for sample in samples for span in sample.spans}:
        items = client.score(samples, heads=[f"policy@{version}"], cache_salt=fresh_salt())
        for sample, item in zip(samples, items, strict=True):
            expected = item.scores[f"policy@{version}"].logprobs
            for span in sample.spans:
                difference = np.abs(sample.logprobs - expected)[span.start : span.end].max()
                assert difference < 1e-4 if span.version == version else difference > 1e-2


# changes that must fail and change nothing


def push_raw(channel: grpc.Channel, data: bytes, **header: Any) -> list[bytes]:
    """A push past our client's own checks."""
    whole = {"name": "policy", "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **header}
    whole.setdefault("manifest", HeadManifest(kind=POLICY))
    chunk = Chunk(data=data)
    return call(channel, "HeadService/PushHead", PushHeadRequest(header=PushHeader(**whole)), PushHeadRequest(chunk=chunk))


Weights = dict[str, np.ndarray]
NORM = "model.norm.weight"


def _with(weights: Weights, **changed: np.ndarray) -> bytes:
    return save({**weights, **{name.replace("__", "."): value for name, value in changed.items()}})


def _without(weights: Weights, name: str) -> bytes:
    return save({key: value for key, value in weights.items() if key != name})


BAD_CHANGES: dict[str, tuple[Callable[[grpc.Channel, Weights], Any], str, str]] = {
    "bad digest": (lambda channel, w: push_raw(channel, save(w), sha256="0" * 64), "INVALID_ARGUMENT", "SHA-256"),
    "torn file": (lambda channel, w: push_raw(channel, save(w)[:-4]), "INVALID_ARGUMENT", ""),
    "not a head": (lambda channel, w: push_raw(channel, b"PK\x03\x04" + b"x" * 1000), "INVALID_ARGUMENT", ""),
    "other trunk": (
        lambda channel, w: push_raw(channel, save(w), manifest=HeadManifest(kind=POLICY, trunk_id="0" * 64)),
        "FAILED_PRECONDITION",
        "trunk",
    ),
    "NaN": (lambda channel, w: push_raw(channel, _with(w, model__norm__weight=np.full(32, np.nan, np.float32))), "INVALID_ARGUMENT", NORM),
    "infinity": (
        lambda channel, w: push_raw(channel, _with(w, model__norm__weight=np.full(32, np.inf, np.float32))),
        "INVALID_ARGUMENT",
        NORM,
    ),
    "overflowing weights": (
        lambda channel, w: push_raw(channel, _with(w, lm_head__weight=w["lm_head.weight"] * 1e30, model__norm__weight=w[NORM] * 1e30)),
        "DATA_LOSS",
        "",
    ),
    "wrong shape": (
        lambda channel, w: push_raw(channel, _with(w, model__norm__weight=np.ones(33, np.float32))),
        "FAILED_PRECONDITION",
        NORM,
    ),
    "wrong dtype": (
        lambda channel, w: push_raw(channel, _with(w, model__norm__weight=np.ones(32, np.int64))),
        "FAILED_PRECONDITION",
        "",
    ),
    "missing tensor": (lambda channel, w: push_raw(channel, _without(w, NORM)), "FAILED_PRECONDITION", NORM),
    "one tensor too many": (
        lambda channel, w: push_raw(channel, _with(w, model__layers__0__x=np.ones(1, np.float32))),
        "FAILED_PRECONDITION",
        "",
    ),
    "changed trunk": (
        lambda channel, w: push_raw(channel, save(w), trunk_sha256={"model.embed_tokens.weight": "0" * 64}),
        "FAILED_PRECONDITION",
        "model.embed_tokens.weight",
    ),
    "policy weights for a value head": (
        lambda channel, w: push_raw(channel, save(w), name="value", manifest=HeadManifest(kind=VALUE)),
        "INVALID_ARGUMENT",
        "",
    ),
    "unknown version": (
        lambda channel, w: call(channel, "HeadService/ActivateHeads", ActivateHeadsRequest(heads={"policy": 1, "value": 999})),
        "NOT_FOUND",
        "value@999",
    ),
    "stale generation": (
        lambda channel, w: call(channel, "HeadService/ActivateHeads", ActivateHeadsRequest(heads={"policy": 1}, expected_generation=1)),
        "ABORTED",
        "moved on",
    ),
}


@pytest.mark.parametrize("name", BAD_CHANGES)
def test_a_failed_change_leaves_the_old_set_bit_for_bit(server: LocalServer, client: Client, name: str) -> None:
    change, code, says = BAD_CHANGES[name]
    weights = {key: np.array(value) for key, value in client.pull_head("policy@1").items()}
    client.activate({"policy": 1, "value": 1})
    before, status, versions = fingerprint(client), client.status(), client.heads()
    with grpc.insecure_channel(server.address) as channel:
        error = error_of(lambda: change(channel, weights))
    assert error.code().name == code, error.details()
    assert says in error.details()
    assert_reveals_nothing(error)
    if name == "stale generation":
        assert dict(details_of(error)[0].metadata)["current_generation"] == str(status.generation)
    now = client.status()
    assert (now.generation, now.active, client.heads()) == (status.generation, status.active, versions)
    assert fingerprint(client) == before


# requests that are repeated, undone, or made at once


def test_a_repeated_request_gets_the_first_answer(client: Client) -> None:
    """Also when `expected_generation` no longer holds: the first answer was lost on the way, not the change."""
    weights = constant_policy(client, FIRST_TOKEN + 7)
    version = client.push_head("policy", weights, kind="policy", request_id="push-7")
    assert client.push_head("policy", weights, kind="policy", request_id="push-7") == version
    generation = client.status().generation
    first = client.activate({"policy": version}, expected_generation=generation, request_id="activate-7")
    again = client.activate({"policy": version}, expected_generation=generation, request_id="activate-7")
    assert (first.number, first.heads) == (again.number, again.heads) == (generation + 1, again.heads)
    with pytest.raises(Conflict) as caught:
        client.activate({"policy": version}, expected_generation=generation)
    assert caught.value.metadata["current_generation"] == str(generation + 1) == str(client.status().generation)


def test_rollbacks_go_back_one_change_each(client: Client) -> None:
    pairs = [push_pair(client, number) for number in (11, 12, 13)]
    for pair in pairs:
        latest = client.activate(pair)
    before = fingerprint(client)
    for pair, number in ((pairs[1], 12), (pairs[0], 11)):
        back = client.rollback()
        assert {name: back.heads[name] for name in pair} == pair
        sample = client.generate([PROMPT], max_new_tokens=2, score=["value"])[0]
        assert numbers_of(sample.token_ids, sample.scores["value"].values) == {number}
    assert client.rollback(to=latest.number).heads == latest.heads
    assert fingerprint(client) == before


def test_concurrent_activations_end_as_the_last_acknowledged(client: Client) -> None:
    """8 threads, half of their changes conditional: numbers are unique, in order, and the last one is what serves."""
    pairs = [push_pair(client, number) for number in range(20, 24)]
    before = client.status().generation
    acknowledged, conflicts = [], []

    def change(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(4):
            expected = client.status().generation if generator.random() < 0.5 else None
            try:
                acknowledged.append(client.activate(generator.choice(pairs), expected_generation=expected))
            except Conflict as error:
                conflicts.append(error)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(change, range(8)))
    assert len(acknowledged) + len(conflicts) == 32
    last = max(acknowledged, key=lambda generation: generation.number)
    assert sorted(generation.number for generation in acknowledged) == list(range(before + 1, last.number + 1))
    status = client.status()
    assert (status.generation, status.active) == (last.number, last.heads)
    sample = client.generate([PROMPT], max_new_tokens=2, score=["value"])[0]
    number = next(20 + index for index, pair in enumerate(pairs) if pair["policy"] == last.heads["policy"])
    assert numbers_of(sample.token_ids, sample.scores["value"].values) == {number}
    history = {generation.number: generation.heads for generation in client.generations()}
    assert all(history[generation.number] == generation.heads for generation in acknowledged)


def test_the_same_weights_pushed_at_once_are_one_head(client: Client) -> None:
    """Each push brought its own copy into memory; once one had been let go, forgetting the other's version failed with INTERNAL."""
    for number in range(50, 54):
        weights = constant_policy(client, FIRST_TOKEN + number)
        with ThreadPoolExecutor(4) as threads:
            versions = list(threads.map(lambda _, weights=weights: client.push_head("policy", weights, kind="policy"), range(4)))
        assert len(set(versions)) == 4
        assert len({client.head(f"policy@{version}").digest for version in versions}) == 1
        push_pair(client, 60)
        for version in versions:
            client.delete_head(f"policy@{version}")


def test_a_watch_can_be_taken_up_where_it_ended(client: Client) -> None:
    first = client.status().generation
    version = client.status().active["policy"]
    numbers = [client.activate({"policy": version}).number for _ in range(3)]
    with client.watch(after=first) as watch:
        assert [next(watch).number for _ in range(3)] == numbers
    with client.watch(after=numbers[1]) as watch:
        assert next(watch).number == numbers[2]


def test_an_untied_models_output_is_part_of_its_heads(client: Client) -> None:
    with pytest.raises(FailedPrecondition, match="PullHead"):
        client.output_embedding()
    assert client.pull_head("policy@1")["lm_head.weight"].shape == (VOCAB, WIDTH)
