"""What the result files say about what sharing buys: tokens, memory, time. Knows no server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyhead.client.rlhf.evidence.results import Found, Results
from polyhead.client.rlhf.evidence.sharing.plan import SERVED, TRL, SharingPlan, Unit
from polyhead.client.rlhf.evidence.wording import not_run
from polyhead.client.rlhf.markdown import paragraph, table

TRAINING = ("policy", "value", "optimiser")  # parts of a round
HANDING = ("checkpoint", "push")


def chapter(results: Results[SharingPlan], trained: Sequence[Found]) -> list[str]:
    """Its blocks of Markdown; `trained` are finished runs of the arms, which say what their trainers took."""
    served, trl = (results.find(Unit(what)) for what in (SERVED, TRL))
    missing = [name for name, found in (("a round on a served trunk", served), ("a round of TRL", trl)) if found is None]
    blocks = [paragraph(_method(results.plan)), paragraph(not_run(dict.fromkeys(missing, ())))]
    blocks += _memory([each["memory"] for each in trained if each.get("memory")])
    blocks += _tokens(served, results.plan.samples) if served else []
    return blocks + _times(served, trl)


def brief(results: Results[SharingPlan]) -> list[str]:
    """A round's seconds and tokens; none before both ways have been run."""
    served, trl = (results.find(Unit(what)) for what in (SERVED, TRL))
    if served is None or trl is None:
        return []
    rounds, (own, with_server) = served["rounds"], (trl[way]["wall"] for way in ("own", "served"))
    count = Counted.of(served, results.plan.samples)
    return [
        f"Five heads on one trunk put {1 - count.trunk / count.heads:.0%} fewer tokens through it than as many models would, and compute "
        f"{1 - count.share:.0%} less, counted in layers. A round that trains policy and value takes "
        f"{np.median([each['wall'] for each in rounds]):.1f} s; a round of TRL, which trains the policy alone, {np.median(own):.1f} s, and "
        f"{np.median(with_server):.1f} s where the server draws and scores for it."
    ]


@dataclass(frozen=True)
class Counted:
    """Tokens of a round, means over the rounds, from the server's counters."""

    drawn: float
    trunk: float
    heads: float  # each head counted
    rules: float  # of the trunk's, about: the rule's question behind each reply
    share: float  # of the layers' work that models which share nothing would do

    @classmethod
    def of(cls, served: Found, samples: int) -> Counted:
        """`samples`: replies to a prompt, which the trunk reads once."""
        rounds, split, layers = served["rounds"], served["split_layer"], served["num_layers"]

        def mean(name: str) -> float:
            return float(np.mean([each[name] for each in rounds]))

        trunk, heads, drawn = (mean(name) for name in ("trunk_tokens", "head_tokens", "generated_tokens"))
        share = (trunk * split + heads * (layers - split)) / (heads * layers)
        return cls(drawn, trunk, heads, trunk - drawn - mean("prompt_tokens") / samples, share)


def _method(plan: SharingPlan) -> str:
    return (
        f"Plan {plan.sha256[:12]}: {plan.rounds + 1} rounds, the first not counted, each of {plan.prompts} new prompts and {plan.samples} "
        f"replies of at most {plan.max_new_tokens} tokens. On the served trunk PPO trains a policy and a value head. A reference, a "
        "preference and a rule head take part; the rule head appends its question to each reply. TRL's GRPOTrainer trains the same layers "
        "of a policy, without a value model, by the same preference and rule head: once with transformers' own generation and a reference "
        "of its own, and once with a server that draws and scores. In both cases the scores of the two heads come from the server. Two "
        "threads for TRL's process, one for our trainer, and two for the server, which does nothing while a trainer computes."
    )


def _memory(memory: Sequence[Found]) -> list[str]:
    if not memory:
        return []
    trainer, whole = (float(np.mean([each[name] for each in memory])) for name in ("trainer", "whole_models"))
    text = (
        f"Memory, means of {len(memory)} runs of the arms above: the trainer's tensors (two heads, their gradients and moments, the output "
        f"matrix) take {trainer:.0f} MiB. Trainers of whole models would hold {whole:.0f} MiB before any activation: policy and value with "
        "gradients and moments, and a reference, in float32. That last figure is computed. What whole processes took, the server included, "
        "is measured in the chapter before."
    )
    return [paragraph(text)]


def _tokens(served: Found, samples: int) -> list[str]:
    count, split, layers = Counted.of(served, samples), served["split_layer"], served["num_layers"]
    saved = f"{count.heads - count.trunk:.0f} trunk tokens of {count.heads:.0f} are saved, {1 - count.trunk / count.heads:.0%}"
    text = (
        f"Tokens of a round, from the server's counters: {count.drawn:.0f} were drawn, {count.trunk:.0f} went through the trunk, and "
        f"{count.heads:.0f} through heads, each head counted. Models that share nothing would put every head's token through a trunk of "
        f"its own: {saved}. About {count.rules / count.trunk:.0%} of the trunk's tokens are the rule's question behind each reply, which "
        f"one head alone reads; without a rule the share that is saved is larger. Counted in layers, {split} of {layers} in the trunk, the "
        f"shared round computes {count.share:.0%} of what separate models would; the output matrix is not counted. Training adds nothing "
        "to the trunk's work: its states come with the replies."
    )
    return [paragraph(text)]


def _times(served: Found | None, trl: Found | None) -> list[str]:
    rows, trained = [], dict[str, float]()
    if served:
        rounds = served["rounds"]
        training = [sum(each["seconds"][part] for part in TRAINING) for each in rounds]
        handing = [sum(each["seconds"].get(part, 0.0) for part in HANDING) for each in rounds]
        rollout, wall = [each["seconds"]["rollout"] for each in rounds], [each["wall"] for each in rounds]
        rows.append(["served trunk, PPO, policy and value", *map(_spread, (rollout, training, handing, wall))])
        trained["own"] = float(np.median(training))
    if trl:
        for way, name in (("own", "TRL, policy, its own generation"), ("served", "TRL, policy, replies and scores from a server")):
            wall, experience = trl[way]["wall"], trl[way]["experience"]
            training = [whole - before for whole, before in zip(wall, experience, strict=True)]
            rows.append([name, _spread(experience), _spread(training), "", _spread(wall)])
        trained["trl"] = float(np.median(training))
    if not rows:
        return []
    headings = ["a round, seconds", "replies with their scores", "training", "checkpoint and push of weights", "whole round"]
    text = ["Medians of the rounds, and the lowest and the highest."]
    if len(trained) == 2:
        text.append(
            "The two programs differ in more than the trunk. With the server's replies TRL has them as quickly, so what is left of the "
            f"difference is the training: {trained['trl']:.1f} s for a policy there, which computes all layers, and {trained['own']:.1f} s "
            "for policy and value here, which compute those above the trunk, from states that came with the replies."
        )
    return [table(headings, rows), paragraph(" ".join(text))]


def _spread(seconds: Sequence[float]) -> str:
    return f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
