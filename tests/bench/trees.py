"""Score trees against batched forward passes of transformers: one dialogue and many rules, four heads on just-drawn samples, and a whole
experience batch. In-process engine on SmolLM2, float32, both sides in turn in one run. The last line is JSON.

    python -m tests.bench.trees [rules] [heads] [experience] [--runs N]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model import embedded
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import build_head, build_trunk, initial_head
from polyhead.heads.model.spec import ModelSpec, describe
from polyhead.server.engine.build import EngineConfig, build_engine
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead
from polyhead.server.engine.work.questions import RuleQuestion, RuleQuestions
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence

NUM_RULES, RULE_TOKENS, DIALOGUE_TOKENS = 23, 40, 500
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS, NUM_ASKED, ASKED_TOKENS = 32, 18, 64, 5, 23
HEADS = {
    "policy": HeadKind.POLICY,
    "reference": HeadKind.POLICY,
    "value": HeadKind.VALUE,
    "preference": HeadKind.PREFERENCE,
    "rule": HeadKind.RULE,
    **{f"value{index}": HeadKind.VALUE for index in range(4)},
}
TEMPLATE = "t@1"
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.monotonic  # one thread's own time: others may share the machine


def make_engine(**config: Any) -> Engine:
    """Each head with weights of its own; only their values are the same."""
    checkpoint = Checkpoint.open(embedded.prepare())
    spec = describe(checkpoint, None)
    trunk = build_trunk(checkpoint, spec, torch.float32)
    engine = build_engine(trunk, EngineConfig(max_context=1024, cache_bytes=3 << 30, **config), frozenset())
    heads = {}
    for name, kind in HEADS.items():
        is_scalar = kind in (HeadKind.VALUE, HeadKind.PREFERENCE)
        output = OutputKind.SCORE if is_scalar else OutputKind.TIED
        tensors = initial_head(checkpoint, spec, output)
        if is_scalar:
            tensors["score.weight"] = torch.randn(1, spec.d_model)
        module = engine.heads.prepare(build_head(spec, tensors, output, trunk.embedding, torch.float32))
        heads[name] = ServedHead(name, 1, manifest(kind, spec, output), LiveHead(name, module, 0))
    engine.activate(ActiveSet(1, heads))
    engine._empty_inbox()
    return engine


def manifest(kind: HeadKind, spec: ModelSpec, output: OutputKind) -> HeadManifest:
    return HeadManifest(
        kind=kind,
        trunk_id="0" * 64,
        split_layer=spec.split_layer,
        num_layers=spec.num_layers,
        output=output,
        violated_token_id=3,
        followed_token_id=4,
        template=TEMPLATE,
    )


def random_ids(count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 49000, (count, length), generator=generator).tolist()


def new_request(score: tuple[str, ...], suffixes: list[list[int]]) -> Request:
    questions = tuple(RuleQuestion(str(index), tuple(suffix)) for index, suffix in enumerate(suffixes))
    names = {name: HEADS[name] for name in ("policy", *score)}
    return Request("bench", lambda *_: None, names, {}, score, RuleQuestions("r@1", {TEMPLATE: questions}) if questions else None)


def drawing(prompts: list[list[int]], score: tuple[str, ...] = (), suffixes: list[list[int]] | None = None) -> Request:
    request = new_request(score, suffixes or [])
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        request.samples.append(Sample(request, index, 0, 0, prompt, TokenSequence(list(prompt)), params, head_name="policy", seed=index))
    return request


def given(pairs: list[tuple[list[int], list[int]]], score: tuple[str, ...], suffixes: list[list[int]] | None = None) -> Request:
    request = new_request(score, suffixes or [])
    for index, (prompt, completion) in enumerate(pairs):
        sample = Sample(request, index, 0, 0, prompt, TokenSequence([*prompt, *completion]), SamplingParams())
        sample.completion, sample.finish_reason = completion, FinishReason.GIVEN
        request.samples.append(sample)
    return request


def run(engine: Engine, request: Request) -> float:
    """Seconds until it has ended."""
    engine.submit(request)
    started_at = CLOCK()
    engine._empty_inbox()
    while not request.is_ended:
        engine.step()
    return CLOCK() - started_at


@torch.inference_mode()
def timed(work: Callable[[], Any]) -> float:
    started_at = CLOCK()
    work()
    return CLOCK() - started_at


class Bench:
    """Ours and theirs, each measure in turn."""

    def __init__(self) -> None:
        self.engine = make_engine()
        self.model = AutoModelForCausalLM.from_pretrained(embedded.prepare(), dtype=torch.float32).eval()
        self.seconds: dict[str, list[float]] = {}
        self.work: dict[str, dict[str, int]] = {}

    def ours(self, name: str, request: Request) -> Request:
        before = self.engine.counters.as_dict()
        self.seconds.setdefault(name, []).append(run(self.engine, request))
        after = self.engine.counters.as_dict()
        self.work[name] = {key: after[key] - before[key] for key in ("steps", "trunk_tokens", "head_tokens", "head_forwards")}
        return request

    def theirs(self, name: str, work: Callable[[], Any]) -> None:
        self.seconds.setdefault(name, []).append(timed(work))

    def ratio(self, ours: str, theirs: str) -> float:
        """Median of the ratios of each run."""
        return statistics.median(b / a for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True))

    # ---- what is measured

    def rules(self, number: int) -> None:
        """23 rules of 40 tokens after one dialogue of 500."""
        (dialogue,) = random_ids(1, DIALOGUE_TOKENS, 1000 + number)
        suffixes = random_ids(NUM_RULES, RULE_TOKENS, 2000 + number)
        others = random_ids(NUM_RULES, RULE_TOKENS, 3000 + number)
        pairs = [(dialogue[:450], dialogue[450:])]
        self.ours("rules, cold", given(pairs, ("rule",), suffixes))
        self.ours("rules, dialogue cached", given(pairs, ("rule",), others))
        for head in self.engine.active.heads:
            self.engine.tree.forget_digest(head)
        self.ours("rules, boundary states cached", given(pairs, ("rule",), random_ids(NUM_RULES, RULE_TOKENS, 4000 + number)))
        ids = torch.tensor([dialogue + suffix for suffix in suffixes])
        self.theirs("rules, transformers", lambda: self.model(ids, logits_to_keep=1, use_cache=False))

    def heads(self, number: int) -> None:
        """Four heads on samples that were just drawn. Value heads have no projection to speak of."""
        prompts = random_ids(NUM_PROMPTS, PROMPT_TOKENS, 5000 + number)
        drawn = drawing(prompts)
        run(self.engine, drawn)
        pairs = [(sample.prompt, list(sample.completion)) for sample in drawn.samples]
        ids = torch.tensor([prompt + completion for prompt, completion in pairs])
        self.ours("four scalar heads", given(pairs, ("value0", "value1", "value2", "value3")))
        self.theirs("four models without output", lambda: [self.model.model(ids, use_cache=False) for _ in range(4)])
        self.ours("log-probs, value, preference", given(pairs, ("policy", "reference", "value", "preference")))
        self.theirs("four models", lambda: self._four(ids))

    def _four(self, ids: torch.Tensor) -> None:
        for _ in range(2):
            self._logprobs(ids)
            self.model.model(ids, use_cache=False)

    def _logprobs(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(ids, logits_to_keep=NEW_TOKENS + 1, use_cache=False).logits[:, :-1]
        following = ids[:, -NEW_TOKENS:, None]
        return torch.cat([row.log_softmax(-1).gather(-1, each) for row, each in zip(logits, following, strict=True)])

    def experience(self, number: int) -> None:
        """Drawing, log-probs of the reference, values, preference and five rules: one request, against eight passes after generate."""
        prompts = random_ids(NUM_PROMPTS, PROMPT_TOKENS, 6000 + number)
        suffixes = random_ids(NUM_ASKED, ASKED_TOKENS, 7000 + number)
        self.ours("drawing alone", drawing(random_ids(NUM_PROMPTS, PROMPT_TOKENS, 8000 + number)))
        self.ours("experience", drawing(prompts, ("reference", "value", "preference", "rule"), suffixes))
        self.theirs("experience, transformers", lambda: self._experience(prompts, suffixes))

    def _experience(self, prompts: list[list[int]], suffixes: list[list[int]]) -> None:
        ids = torch.tensor(prompts)
        options = {"do_sample": True, "top_k": 0, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 2}
        self.theirs("generate", lambda: self.model.generate(ids, attention_mask=torch.ones_like(ids), **options))
        full = torch.tensor([row + drawn for row, drawn in zip(prompts, random_ids(NUM_PROMPTS, NEW_TOKENS, 9), strict=True)])
        self.theirs("two passes of log-probs", lambda: [self._logprobs(full) for _ in range(2)])
        self.theirs("two scalar passes", lambda: [self.model.model(full, use_cache=False) for _ in range(2)])
        for suffix in suffixes:
            asked = torch.cat([full, torch.tensor([suffix]).expand(NUM_PROMPTS, -1)], dim=1)
            self.theirs("a rule pass", lambda ids=asked: self.model(ids, logits_to_keep=1, use_cache=False))


RATIOS = {
    "rules": [("rules, cold", "rules, transformers"), ("rules, dialogue cached", "rules, transformers"),
              ("rules, boundary states cached", "rules, transformers")],
    "heads": [("four scalar heads", "four models without output"), ("log-probs, value, preference", "four models")],
    "experience": [("experience", "experience, transformers")],
}


def main() -> None:
    """Run what is asked for, all three by default, and print medians, counts and ratios."""
    num_runs = int(sys.argv[sys.argv.index("--runs") + 1]) if "--runs" in sys.argv else 3
    asked = [name for name in RATIOS if name in sys.argv] or list(RATIOS)
    bench = Bench()
    run(bench.engine, drawing(random_ids(2, 9, 1)))
    for number in range(num_runs):
        for name in asked:
            getattr(bench, name)(number)
    for name, seconds in bench.seconds.items():
        print(f"{name:32} {statistics.median(seconds):7.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})  {bench.work.get(name, '')}")
    ratios = {f"{ours} / {theirs}": round(bench.ratio(ours, theirs), 2) for name in asked for ours, theirs in RATIOS[name]}
    for name, ratio in ratios.items():
        print(f"{ratio:6.2f}  {name}")
    print(json.dumps({"seconds": bench.seconds, "work": bench.work, "ratios": ratios}))


if __name__ == "__main__":
    main()
