"""A tiny model, its engine stepped by hand, and requests without protobuf: every test of the engine starts here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import TrunkModule, build_head, build_trunk, initial_head
from polyhead.heads.model.spec import ModelSpec, describe
from polyhead.server.engine.build import EngineConfig, build_engine
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.schedule.scorer import HeadResult, results
from polyhead.server.engine.work.events import Drawn, Ended, Finished
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead
from polyhead.server.engine.work.questions import RuleQuestion, RuleQuestions
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.reports import SwapReport
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from tests.heads.models import load_whole

TEMPLATE = "t@1"
VIOLATED, FOLLOWED = 3, 4


@dataclass
class Bench:
    """One model, split, with five heads active; policy and reference share weights, value and preference share weights."""

    checkpoint: Checkpoint
    spec: ModelSpec
    trunk: TrunkModule
    engine: Engine
    events: list[Event] = field(default_factory=list)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # of the heads that were made, by digest
    report: SwapReport | None = None  # of the last activation

    @classmethod
    def open(
        cls, folder: Path, split_layer: int, eos_ids: frozenset[int] = frozenset(), dtype: torch.dtype = torch.float32, **config: Any
    ) -> Bench:
        checkpoint, spec = described(folder, split_layer)
        trunk = build_trunk(checkpoint, spec, dtype)
        engine = build_engine(trunk, EngineConfig(**{"cache_bytes": 64 << 20, "max_context": 256, **config}), eos_ids)
        bench = cls(checkpoint, spec, trunk, engine)
        bench.activate(1, policy=bench.policy("a"), value=bench.scalar("b"))
        return bench

    @cached_property
    def model(self) -> PreTrainedModel:
        """Unsplit, as transformers loads it."""
        return load_whole(self.checkpoint.folder, self.trunk.embedding.dtype)

    def policy(self, digest: str, change: Callable[[dict[str, Tensor]], None] = lambda tensors: None) -> LiveHead:
        """A policy head from the checkpoint, changed at will."""
        output = OutputKind.TIED if self.spec.tied else OutputKind.OWN
        return self._live(digest, output, change)

    def scalar(self, digest: str, seed: int = 0) -> LiveHead:
        """A scalar head with a random score."""

        def change(tensors: dict[str, Tensor]) -> None:
            generator = torch.Generator().manual_seed(seed)
            tensors["score.weight"] = torch.randn(1, self.spec.d_model, generator=generator)

        return self._live(digest, OutputKind.SCORE, change)

    def _live(self, digest: str, output: OutputKind, change: Callable[[dict[str, Tensor]], None]) -> LiveHead:
        tensors = {name: tensor.clone() for name, tensor in initial_head(self.checkpoint, self.spec, output).items()}
        change(tensors)
        self.tensors[digest] = {name: tensor.clone() for name, tensor in tensors.items()}  # fast layers take the weights over
        heads = self.engine.heads
        module = build_head(self.spec, tensors, output, heads.tied_embedding, self.trunk.embedding.dtype, heads.device)
        return LiveHead(digest, self.engine.heads.prepare(module), 0)

    def activate(
        self, generation: int, *, policy: LiveHead, value: LiveHead, policy_version: int = 0, **manifest: Any
    ) -> ActiveSet:
        """Make a set of five heads active at once, as a swap between two steps does. Versions are the generation's number."""
        kinds = {
            "policy": (HeadKind.POLICY, policy),
            "reference": (HeadKind.POLICY, policy),
            "rule": (HeadKind.RULE, policy),
            "preference": (HeadKind.PREFERENCE, value),
            "value": (HeadKind.VALUE, value),
        }
        heads = {name: ServedHead(name, generation, self.manifest(kind, live, **manifest), live) for name, (kind, live) in kinds.items()}
        if policy_version:
            heads["policy"] = dataclasses.replace(heads["policy"], version=policy_version)
        active = ActiveSet(generation, heads)
        flipped = self.engine.activate(active)
        self.engine._empty_inbox()
        self.report = flipped.result()
        return active

    def manifest(self, kind: HeadKind, live: LiveHead, **changes: Any) -> HeadManifest:
        return HeadManifest(
            kind=kind,
            trunk_id="0" * 64,
            split_layer=self.spec.split_layer,
            num_layers=self.spec.num_layers,
            output=live.module.output,
            violated_token_id=VIOLATED,
            followed_token_id=FOLLOWED,
            template=TEMPLATE,
            **changes,
        )

    def prompt(self, num_tokens: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.randint(5, self.spec.vocab_size, (num_tokens,), generator=generator).tolist()

    def request(self, *, score: tuple[str, ...] = (), rules: dict[str, tuple[int, ...]] | None = None, **fields: Any) -> Request:
        questions = tuple(RuleQuestion(rule_id, suffix) for rule_id, suffix in (rules or {}).items())
        names = {name: self.engine.active.heads[name].manifest.kind for name in ("policy", *score)}
        pinned = fields.pop("pinned", {})
        return Request(
            "test", self._deliver, names, pinned, score, RuleQuestions("rules@1", {TEMPLATE: questions}) if rules else None, **fields
        )

    def sampled(self, prompt: list[int], n: int = 1, params: SamplingParams | None = None, **fields: Any) -> Request:
        """A request for `n` samples of one prompt."""
        request = self.request(**fields)
        self.add_samples(request, prompt, n, params)
        return request

    def add_samples(self, request: Request, prompt: list[int], n: int = 1, params: SamplingParams | None = None) -> None:
        params = params or SamplingParams(max_new_tokens=8)
        for index in range(n):
            seed = 77 * len(request.samples) + index
            request.samples.append(Sample(request, 0, 0, index, prompt, TokenSequence(list(prompt)), params, head_name="policy", seed=seed))

    def given(self, prompt: list[int], completion: list[int], is_terminated: bool = False, **fields: Any) -> Request:
        """A request that scores one completion."""
        request = self.request(**fields)
        sample = Sample(request, 0, 0, 0, prompt, TokenSequence([*prompt, *completion]), SamplingParams())
        sample.completion, sample.finish_reason, sample.is_terminated = completion, FinishReason.GIVEN, is_terminated
        request.samples.append(sample)
        return request

    def _deliver(self, request: Request, events: list[Event]) -> None:
        self.events.extend(events)

    def start(self, *requests: Request, steps: int = 1) -> None:
        """Submit, and take some steps."""
        for request in requests:
            self.engine.submit(request)
        for _ in range(steps):
            self.engine._empty_inbox()
            self.engine.step()

    def finish(self, *requests: Request, most_steps: int = 2000) -> None:
        """Step until requests that were started have ended."""
        for _ in range(most_steps):
            if all(request.is_ended for request in requests):
                return
            self.engine.step()
            self.engine._empty_inbox()
        raise AssertionError("the requests did not end")

    def run(self, *requests: Request, most_steps: int = 2000) -> None:
        """Submit and step until all have ended."""
        for request in requests:
            self.engine.submit(request)
        self.engine._empty_inbox()
        self.finish(*requests, most_steps=most_steps)

    def counted(self, *requests: Request) -> int:
        """Trunk tokens that these requests took."""
        before = self.engine.counters.trunk_tokens
        self.run(*requests)
        return self.engine.counters.trunk_tokens - before

    @torch.no_grad()
    def unsplit_logprobs(self, tokens: list[int]) -> Tensor:
        """(tokens, vocab) log-probs of the unsplit model."""
        return self.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    def assert_blocks_returned(self) -> None:
        """Every block is free or cached, exactly once."""
        self.engine.tree.check()
        assert self.engine.tree.num_used == 0
        assert self.engine.tree.heads.num_idle == self.engine.tree.heads.num_filled
        assert self.engine.is_idle


@cache
def described(folder: Path, split_layer: int) -> tuple[Checkpoint, ModelSpec]:
    """A model is described once in a run: nobody writes to either, and no test saves a second model in one folder."""
    checkpoint = Checkpoint.open(folder)
    return checkpoint, describe(checkpoint, split_layer)


def scores(sample: Sample) -> dict[str, HeadResult]:
    return {result.head_name: result for result in results(sample)}


def assert_agrees(sample: Sample, reference: Tensor, tolerance: float = 1e-4) -> None:
    """A sample's log-probs equal those of the unsplit model on the same tokens."""
    first = len(sample.prompt) - 1
    for index, (token, logprob) in enumerate(zip(sample.completion, sample.logprobs, strict=True)):
        assert abs(reference[first + index, token].item() - logprob) < tolerance


__all__ = ["Bench", "Drawn", "Ended", "Finished", "assert_agrees", "scores"]
