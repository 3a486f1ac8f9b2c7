"""Candidates for a rater who must not see where they come from: what is shown, and apart from it the key for storage.

    blinded = blind(samples, evidence=[None, Evidence(query="...", title="...", url="...", snippet="..."), None, None])
    page = blinded.shown_json()                        # [{"id", "text", "evidence"}] in shuffled order: for the frontend
    record = blinded.key_json()                        # {id: {"head", "version", "sample_seed", ...}}: for storage only
    prompt = blinded.continue_from(chosen_id, [{"role": "user", "content": "And then?"}])
    row = blinded.to_preference(chosen_id)             # with blind(samples, prompt=...): {"prompt", "chosen", "rejected"} for a trainer

Nothing in the shown part depends on a candidate's head, on its place among the samples or on when it was finished. The text is shown as
it was sampled: what a head says about itself there is the caller's affair. Sends nothing.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polyhead.client.errors import InvalidArgument, NotFound
from polyhead.client.results.plain import to_plain
from polyhead.client.results.results import FinishReason, Sample
from polyhead.client.wire.prompts import Continuation, Message, continue_from

__all__ = ["BlindCandidates", "Candidate", "Evidence", "blind"]

_ID_BITS = 96  # cannot be guessed, and are never repeated
_UNUSABLE = (FinishReason.ABORTED, FinishReason.FAILED)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a reply was conditioned on, for a citation card. The search is the caller's."""

    query: str = ""
    title: str = ""
    url: str = ""
    snippet: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """All that a rater may see of one sample."""

    id: str  # opaque
    text: str
    evidence: Evidence | None


@dataclass(frozen=True, slots=True)
class BlindCandidates:
    """`shown`, in the order to show; the rest is for storage. Its repr holds no more than what is shown."""

    shown: tuple[Candidate, ...]
    _samples: dict[str, Sample] = field(repr=False)  # by id
    _prompt: str | tuple[Message, ...] | None = field(default=None, repr=False)  # what they answer, as it was given

    def shown_json(self) -> list[dict[str, Any]]:
        """For the frontend: plain values that json.dumps takes."""
        return [dataclasses.asdict(candidate) for candidate in self.shown]

    def key_json(self) -> dict[str, dict[str, Any]]:
        """By id, what made each candidate and what the scoring heads said: plain values that json.dumps takes. Not for the frontend.

        With it and `sample_seed` a sample can be drawn again; a number that is not finite is None.
        """
        return {
            candidate.id: _key(self._samples[candidate.id], slot, with_evidence=candidate.evidence is not None)
            for slot, candidate in enumerate(self.shown)
        }

    def sample(self, candidate_id: str) -> Sample:
        """The sample behind an id. NotFound if it is not one of these candidates."""
        try:
            return self._samples[candidate_id]
        except KeyError:
            raise NotFound(f"no candidate has this id: {candidate_id[:80]!r}", field="candidate_id") from None

    def continue_from(self, candidate_id: str, messages: Sequence[Message]) -> Continuation:
        """The prompt of the next turn, behind the chosen candidate: its exact ids, so its cache is hit."""
        return continue_from(self.sample(candidate_id), messages)

    def to_preference(self, chosen_id: str, rejected_id: str = "") -> dict[str, Any]:
        """{"prompt", "chosen", "rejected"} as TRL's reward and DPO trainers take it: messages where the prompt was messages, else texts.

        `rejected_id` may be left out where there are two candidates. InvalidArgument if `blind` was not given the prompt.
        """
        if self._prompt is None:
            raise InvalidArgument("the row needs the prompt as text or messages: give blind(samples, prompt=...)", field="prompt")
        others = [candidate.id for candidate in self.shown if candidate.id != chosen_id]
        if not rejected_id and len(others) != 1:
            raise InvalidArgument(f"name the rejected one of {len(self.shown)} candidates: rejected_id=", field="rejected_id")
        chosen, rejected = self.sample(chosen_id).text, self.sample(rejected_id or others[0]).text
        if rejected_id == chosen_id:
            raise InvalidArgument("a candidate cannot be chosen and rejected", field="rejected_id")
        if isinstance(self._prompt, str):
            return {"prompt": self._prompt, "chosen": chosen, "rejected": rejected}
        prompt = [dict(message) for message in self._prompt]
        return {"prompt": prompt, "chosen": _reply(chosen), "rejected": _reply(rejected)}


def blind(
    samples: Sequence[Sample],
    *,
    evidence: Sequence[Evidence | None] | None = None,
    rng: random.Random | None = None,
    prompt: str | Sequence[Message] | None = None,
) -> BlindCandidates:
    """Candidates of one prompt, from one or several arms or calls, in random order under random ids.

    `evidence`: one entry a sample, None for a reply without; only the prompts of those with evidence may differ from the others'.
    `prompt`: what they answer, text or messages, for `to_preference`.
    `rng` draws order and ids; left out, it is the system's own, and no one can foretell them. Raises InvalidArgument for no samples,
    for one that was aborted or failed, and for samples of different prompts.
    """
    sources = _checked(samples, evidence)
    draw = rng or random.SystemRandom()
    order = draw.sample(range(len(samples)), len(samples))
    shown = tuple(Candidate(f"{draw.getrandbits(_ID_BITS):0{_ID_BITS // 4}x}", samples[index].text, sources[index]) for index in order)
    by_id = {candidate.id: samples[index] for candidate, index in zip(shown, order, strict=True)}
    return BlindCandidates(shown, by_id, prompt if prompt is None or isinstance(prompt, str) else tuple(prompt))


def _reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _checked(samples: Sequence[Sample], evidence: Sequence[Evidence | None] | None) -> Sequence[Evidence | None]:
    """The evidence of each sample, if all of them can be shown side by side."""
    if not samples:
        raise InvalidArgument("samples are empty", field="samples")
    sources = [None] * len(samples) if evidence is None else evidence
    if len(sources) != len(samples):
        raise InvalidArgument(f"evidence needs one entry a sample: {len(sources)} for {len(samples)}", field="evidence")
    for index, sample in enumerate(samples):
        if sample.finish_reason in _UNUSABLE:
            raise InvalidArgument(f"samples[{index}] was {sample.finish_reason.value}: {sample.error}", field=f"samples[{index}]")
    plain = [index for index, source in enumerate(sources) if source is None]
    for index in plain:
        if samples[index].prompt_token_ids != samples[plain[0]].prompt_token_ids:
            what = f"samples[{index}] answers another prompt than samples[{plain[0]}]"
            raise InvalidArgument(f"{what}\nhint: only a candidate with evidence may have a context of its own", field=f"samples[{index}]")
    return sources


def _key(sample: Sample, slot: int, *, with_evidence: bool) -> dict[str, Any]:
    named = ("head", "digest", "sample_seed", "prompt_index", "arm_index", "sample_index", "prompt_token_ids", "token_ids", "request_id")
    return {
        "slot": slot,
        "version": sample.head_version,
        "spans": to_plain(sample.spans),
        "generation": sample.generation,
        "with_evidence": with_evidence,
        "sampling": to_plain(sample.sampling),
        "finish_reason": sample.finish_reason.value,
        "trunk_id": sample.served.trunk_id,
        "precision": sample.served.precision,
        "scores": {name: to_plain(score) for name, score in sample.scores.items()},
        "reward": to_plain(sample.reward),
        **{name: to_plain(getattr(sample, name)) for name in named},
    }
