"""What the result files say about what sharing buys: tokens, memory, time. Knows no server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyhead.client.rlhf.evidence.results import Found, Results
from polyhead.client.rlhf.evidence.sharing.plan import SERVED, TRL, SharingPlan, Unit
from polyhead.client.rlhf.evidence.wording import not_run
from polyhead.client.rlhf.markdown import paragraph, table
from polyhead.heads.training.rl.report import PARTS


def chapter(results: Results[SharingPlan], trained: Sequence[Found]) -> list[str]:
    """Its blocks of Markdown; `trained` are finished runs of the arms, which say what their trainers took."""
    served, trl = (results.find(Unit(what)) for what in (SERVED, TRL))
    missing = [name for name, found in (("a round on a served trunk", served), ("a round of TRL", trl)) if found is None]
    blocks = [paragraph(_method(results.plan)), paragraph(not_run(dict.fromkeys(missing, ())))]
    blocks += _memory([each["memory"] for each in trained if each.get("memory")])
    blocks += _tokens(served) if served else []
    return blocks + _times(served, trl)


def brief(results: Results[SharingPlan]) -> list[str]:
    """A round's seconds and tokens; none before both ways have been run."""
    served, trl = (results.find(Unit(what)) for what in (SERVED, TRL))
    if served is None or trl is None:
        return []
    rounds, (own, with_server) = served["rounds"], (trl[way]["wall"] for way in ("own", "served"))
    saved = 1 - _sum(rounds, "trunk_tokens") / _sum(rounds, "head_tokens")
    return [
        f"Sharing the trunk: five heads put {saved:.0%} fewer tokens through it than as many models. A round with the training of policy "
        f"and value takes {np.median([each['wall'] for each in rounds]):.1f} s; TRL takes {np.median(own):.1f} s for a round that trains "
        f"the policy alone, and {np.median(with_server):.1f} s where the server draws and scores for it."
    ]


def _sum(rounds: Sequence[Found], name: str) -> float:
    return float(sum(each[name] for each in rounds))


def _method(plan: SharingPlan) -> str:
    return (
        f"Plan {plan.sha256[:12]}: {plan.rounds} rounds, behind one that is left out, each of {plan.prompts} prompts that no round before "
        f"had and {plan.samples} replies of at most {plan.max_new_tokens} tokens. On the served trunk PPO trains a policy and a value "
        "head; a reference, a preference and a rule head, which asks its question behind each reply, take part. TRL's GRPOTrainer trains "
        "the same layers of a policy, without a value model, by the same preference and rule head: once with transformers' own generation "
        "and a reference of its own, and once with a server that draws and scores. Two threads for TRL's process, one for our trainer, and "
        "two for the server, which waits while a trainer computes."
    )


def _memory(memory: Sequence[Found]) -> list[str]:
    if not memory:
        return []
    trainer, peak, whole = (float(np.mean([each[name] for each in memory])) for name in ("trainer", "peak", "whole_models"))
    text = (
        f"Memory, means of {len(memory)} runs of the arms above: the trainer's tensors (two heads, their gradients and moments, the output "
        f"matrix) take {trainer:.0f} MiB, and its process took {peak:.0f} MiB at most. Trainers of whole models would hold {whole:.0f} MiB "
        "before any activation: policy and value with gradients and moments, and a reference, in float32. That last figure is computed; "
        "what a trainer of whole models took is measured in the chapter before."
    )
    return [paragraph(text)]


def _tokens(served: Found) -> list[str]:
    rounds, split, layers = served["rounds"], served["split_layer"], served["num_layers"]
    trunk, heads, drawn = (float(np.mean([each[name] for each in rounds])) for name in ("trunk_tokens", "head_tokens", "generated_tokens"))
    shared, apart = trunk * split + heads * (layers - split), heads * layers
    saved, share = f"{heads - trunk:.0f} trunk tokens of {heads:.0f} are saved, {1 - trunk / heads:.0%}", f"{shared / apart:.0%}"
    text = (
        f"Tokens of a round, from the server's counters: {drawn:.0f} were drawn, {trunk:.0f} went through the trunk, and {heads:.0f} "
        f"through heads, each head counted. Models that share nothing would put every head's token through a trunk of its own: {saved}. "
        f"Counted in layers, {split} of {layers} in the trunk, the shared round computes {share} of what they would. Training adds nothing "
        "to the trunk's work: its states come with the replies."
    )
    return [paragraph(text)]


def _times(served: Found | None, trl: Found | None) -> list[str]:
    rows = []
    if served:
        measured = [part for part in PARTS if part in served["rounds"][0]["seconds"]]
        parts = ", ".join(f"{part} {np.mean([each['seconds'][part] for each in served['rounds']]):.1f}" for part in measured)
        wall = [each["wall"] for each in served["rounds"]]
        rollout = [each["seconds"]["rollout"] for each in served["rounds"]]
        rows.append(["served trunk, PPO: " + parts, _spread(rollout), _spread(wall)])
    if trl:
        for way, name in (("own", "TRL, its own generation"), ("served", "TRL, replies and scores from a server")):
            rows.append([name, _spread(trl[way]["experience"]), _spread(trl[way]["wall"])])
    return [table(["seconds of a round", "replies with their scores", "whole round"], rows)] if rows else []


def _spread(seconds: Sequence[float]) -> str:
    return f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
