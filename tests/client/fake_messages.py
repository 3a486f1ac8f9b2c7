"""Messages with fixed numbers, as a server would send them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from polyhead.v1 import (
    generation_pb2,
    scoring_pb2,
    trunk_pb2,
    types_pb2,
)

D_MODEL, VOCAB = 4, 6
EMBEDDING = np.arange(VOCAB * D_MODEL, dtype=np.float32).reshape(VOCAB, D_MODEL)
TRUNK_NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
TRUNK_TENSORS = {TRUNK_NAMES[0]: EMBEDDING, TRUNK_NAMES[1]: np.ones((8, D_MODEL), np.float32)}
HEAD_SHAPES = {"model.layers.1.mlp.up_proj.weight": (8, D_MODEL), "model.norm.weight": (D_MODEL,)}
SERVED = types_pb2.Served(
    trunk_id="ab" * 32, precision="float32", generation=3, head_versions={"policy": 7}, tokenizer_sha256="cd"
)
CONFIGURATIONS = [
    scoring_pb2.Configuration(
        kind=scoring_pb2.CONFIGURATION_KIND_RULE_SET,
        reference=f"example-rules@{version}",
        sha256="aa" * 32,
        content=f"id: example-rules\nversion: {version}\n",
        rules=[types_pb2.Rule(id="no-insults", text="Be kind.")],
    )
    for version in (1, 2)
] + [
    scoring_pb2.Configuration(kind=kind, reference="sparrow@1", sha256="bb" * 32, content="id: sparrow\n")
    for kind in (scoring_pb2.CONFIGURATION_KIND_RECIPE, scoring_pb2.CONFIGURATION_KIND_TRANSCRIPT_FORMAT)
]


def generate_answer(request: Any) -> list[Any]:
    """Every sample that was asked for, the last one first; states after their sample; groups where asked for."""
    response, messages = generation_pb2.GenerateResponse, []
    if request.delivery == generation_pb2.DELIVERY_TOKENS:
        messages += [
            response(piece=generation_pb2.Piece(offset=i, token_ids=[i], logprobs=[-0.5], text=t)) for i, t in enumerate("ab")
        ]
    keys = [(p, a, s) for p in range(len(request.prompts)) for a, arm in enumerate(request.arms) for s in range(arm.n)]
    samples = [
        make_sample(*key, heads=request.score.heads, is_formatted=bool(request.prompts[0].format), recipe=request.score.recipe)
        for key in reversed(keys)
    ]
    if request.HasField("select"):
        return [response(group=_best(p, samples, request.select)) for p in range(len(request.prompts))]
    if request.delivery == generation_pb2.DELIVERY_GROUPS:
        return [*messages, response(group=generation_pb2.SampleGroup(samples=samples))]
    known_prompts: set[int] = set()
    for sample in samples:
        messages.append(response(sample=sample))
        if request.return_states:
            key = {"prompt_index": sample.prompt_index, "arm_index": sample.arm_index, "sample_index": sample.sample_index}
            states = np.arange(5 * D_MODEL, dtype=np.float32).reshape(5, D_MODEL)
            if not request.prompt_states_once or key["prompt_index"] not in known_prompts:
                known_prompts.add(key["prompt_index"])
                messages.append(response(states=generation_pb2.StatesPart(**key, offset=0, states=make_tensor(states[:2]))))
            messages.append(response(states=generation_pb2.StatesPart(**key, offset=2, states=make_tensor(states[2:]))))
    return messages


def _best(prompt: int, samples: list[Any], select: Any) -> generation_pb2.SampleGroup:
    """The last sample is the best, the first has no reward, and one more than `top` comes if the median was asked for."""
    group = [sample for sample in samples if sample.prompt_index == prompt]
    ranking = [
        generation_pb2.RankedSample(arm_index=s.arm_index, sample_index=s.sample_index, reward=None if s.reward.error else s.reward.reward)
        for s in group
    ]
    return generation_pb2.SampleGroup(prompt_index=prompt, samples=group[: select.top + select.median], ranking=ranking)


def make_reward(recipe: str, sample: int) -> types_pb2.Reward:
    """Of the samples of one prompt: higher for later ones, none for the first."""
    constants = {"preference": 2.0, "kl_coefficient": 0.5}
    reward = types_pb2.Reward(recipe=f"{recipe}@1", constants=constants, kl_estimator="k1", rank=9 - sample)
    if sample == 0:
        reward.error = "the sample was aborted"
        return reward
    reward.MergeFrom(
        types_pb2.Reward(
            reward=float(sample),
            reward_with_kl=sample - 0.75,
            parts={"preference": sample / 2, "kl": 1.5},
            kl=[0.5, 1.0, 0.0],
            token_rewards=[-0.25, -0.5, float(sample)],
        )
    )
    return reward


def make_tensor(array: np.ndarray) -> types_pb2.Tensor:
    return types_pb2.Tensor(dtype="float32", shape=list(array.shape), data=array.astype("<f4").tobytes())


def make_sample(
    prompt: int, arm: int, sample: int, heads: Any = (), is_formatted: bool = False, recipe: str = ""
) -> generation_pb2.Sample:
    return generation_pb2.Sample(
        prompt_index=prompt,
        arm_index=arm,
        sample_index=sample,
        prompt_token_ids=[10, 11],
        token_ids=[1, 2, 3],
        text="ab",
        logprobs=[-0.5, -1.0, -1.5],
        sampling_logprobs=[-0.25, -0.5, -0.75],
        finish_reason=types_pb2.FINISH_REASON_STOP_STRING,
        terminated=True,
        stop="\n\nUser:",
        head="policy",
        head_version=7,
        digest="ee" * 32,
        spans=[generation_pb2.Span(start=0, end=3, version=7, generation=3, digest="cd" * 32)],
        sample_seed=(1 << 63) + sample,
        scores=make_scores(heads),
        num_cached_tokens=2,
        valid=not is_formatted,
        invalid_reasons=["foreign_opening"] if is_formatted else [],
        num_newlines=2,
        format="sparrow@1" if is_formatted else "",
        reward=make_reward(recipe, sample) if recipe else None,
        sampling=types_pb2.Sampling(temperature=1.0, top_p=1.0, seed=7, max_new_tokens=64),
    )


_SCORES: dict[str, Callable[[], dict[str, Any]]] = {
    "reference": lambda: {"kind": 1, "policy": types_pb2.PolicyScore(logprobs=[-1.0, -2.0, -3.0])},
    "wordy": lambda: {
        "kind": 1,
        "policy": types_pb2.PolicyScore(
            logprobs=[-1.0, -2.0, -3.0], entropies=[0.5, 1.0, 1.5], top_token_ids=[1, 2, 3, 4, 5, 6], top_logprobs=[-1, -2, -3, -4, -5, -6]
        ),
    },
    "preference": lambda: {
        "kind": 2,
        "preference": types_pb2.PreferenceScore(raw=1.5, bias=0.5, value=1.0, present=True, position=4),
    },
    "rule": lambda: {
        "kind": 3,
        "rule": types_pb2.RuleScores(
            rules=[types_pb2.RuleScore(rule_id="no-insults", p_violate=0.25, p_follow=0.75, answer_mass=0.5)],
            rule_set="example-rules@1",
        ),
    },
    "value": lambda: {"kind": 4, "value": types_pb2.ValueScore(values=[0.1, 0.2, 0.3], bootstrap_value=0.5)},
    "broken": lambda: {"kind": 4, "error": "not finite"},
}


def make_scores(heads: Any) -> list[types_pb2.HeadScore]:
    return [types_pb2.HeadScore(head=head, version=1, digest="dd" * 32, **_SCORES[head]()) for head in heads]


def make_trunk(*, tied: bool = True, dtype: str = "torch.float32") -> trunk_pb2.GetTrunkResponse:
    return trunk_pb2.GetTrunkResponse(
        trunk_id="ab" * 32,
        precision="float32",
        model="tiny",
        split_layer=1,
        num_layers=2,
        d_model=D_MODEL,
        vocab_size=VOCAB,
        tied=tied,
        tensors=[
            trunk_pb2.SourceTensor(name=name, dtype=dtype, sha256=hashlib.sha256(stored_bytes(value, dtype)).hexdigest())
            for name, value in TRUNK_TENSORS.items()
        ],
        head_tensors=[trunk_pb2.HeadTensor(name=name, shape=shape) for name, shape in HEAD_SHAPES.items()],
    )


def stored_bytes(array: np.ndarray, dtype: str) -> bytes:
    """A checkpoint's bytes of exactly representable numbers."""
    if dtype.endswith("bfloat16"):
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype("<f2" if dtype.endswith("float16") else "<f4").tobytes()
