"""What the result files say about freezing: the same two tasks with more and less of the model trained. Knows no server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.client.rlhf.evidence.freezing.plan import DATA, PREFERENCE, RL, FreezingPlan
from polyhead.client.rlhf.evidence.intervals import Interval, bootstrap, table_of
from polyhead.client.rlhf.evidence.results import Found, Results
from polyhead.client.rlhf.evidence.wording import not_run, with_interval
from polyhead.client.rlhf.markdown import paragraph, table

IMAGE = "rlhf-evidence-freezing.svg"
MIB = 1 << 20
NUM_LAYERS = 30  # of SmolLM2-135M
SHOWN = ("frozen-90", "frozen-80", "frozen-50", "everything")  # a plot has four colours
COMPARED = ("frozen-80", "everything")  # in brief
ByVariant = Mapping[str, Sequence[Found]]


def method(plan: FreezingPlan) -> list[str]:
    """What is done."""
    config = plan.config
    what = (
        f"Plan {plan.sha256[:12]}, seeds {', '.join(map(str, plan.seeds))}. Where a trunk is frozen, a "
        "server holds the trunk, draws and scores; the trainer holds heads. With everything trained, one process of plain torch holds "
        "whole models and draws with transformers' `generate`. The update between two rounds is the same code for all variants. Each unit "
        "runs in a process of its own, two threads a process, on a machine that does nothing else."
    )
    preference = (
        f"Preference task: {plan.epochs} epoch{'s' * (plan.epochs > 1)} on the judge's order of {plan.base_samples} replies to each of "
        f"{plan.train_questions} questions, measured on pairs of {plan.base_samples} replies to {plan.held_out_questions} held-out "
        "questions. A seed's replies are drawn once and are the same for all variants; the time includes the trunk's own pass over them."
    )
    rl = (
        f"RL task: {config.rounds} rounds of {config.prompts} prompts and {config.samples} replies of at most {config.max_new_tokens} "
        f"tokens, rewarded by both judges, KL {config.kl_weight:g} a token. LoRA policies have a value head that is trained whole. The "
        "same data means after all steps or rounds. The same time means where a variant was when the quickest one had finished: rates are "
        "constant, so this is what a shorter run would have given. The same KL: reward = a + b sqrt(KL), fitted to a run's rounds (the "
        "shape that Gao et al. 2022 and Bai et al. 2022 find), read at that KL, and only where the run came so far."
    )
    return [paragraph(what), _variants(plan), paragraph(preference), paragraph(rl)]


def chapter(results: Results[FreezingPlan], images: str) -> list[str]:
    """Its blocks of Markdown; the plot is rlhf-evidence-freezing.svg, in `images`."""
    preference, rl, missing = found_by_variant(results)
    blocks = [*method(results.plan), paragraph(not_run(missing))]
    if preference:
        blocks += ["### Preference task", _preference(results.plan, preference)]
    if rl:
        blocks += ["### RL task", _rl(results.plan, rl), *_failed(rl)]
    if preference or rl:
        blocks += ["### What it takes", _costs(results.plan, preference, rl), paragraph(_COSTS)]
        blocks.append(f"![Held-out accuracy and reward by time]({images}/{IMAGE})")
    return blocks


def brief(results: Results[FreezingPlan]) -> list[str]:
    """What the server's own split costs against everything trained, and what the trainer holds; none before both have been run."""
    preference, rl, _ = found_by_variant(results)
    if not all(name in found for found in (preference, rl) for name in COMPARED):
        return []
    (frozen, frozen_rl), (whole, whole_rl) = ([found[name] for found in (preference, rl)] for name in COMPARED)
    ranked = [f"{bootstrap(table_of([each['pairs'] for each in own], 'right')).mean:.3f}" for own in (frozen, whole)]
    text = (
        f"Freezing {results.plan.variants[COMPARED[0]].trunk_layers} of {NUM_LAYERS} layers instead of none, the same data: held-out pairs "
        f"ranked right {ranked[0]} against {ranked[1]}, difference {with_interval(_difference(frozen, whole), '{:+.3f}'.format)}."
    )
    within = _mean(frozen, lambda each: float(each["seconds"]))
    early = _known([at(each["curve"], within, "accuracy") for each in whole], "{:.3f}".format)
    text += f" After {within:.0f} s, which {COMPARED[0]} takes: {ranked[0]} against {early}."
    for kl in reversed(results.plan.kl):
        rewards = [[at_kl(each["rounds"], kl) for each in own] for own in (frozen_rl, whole_rl)]
        if not np.isnan(rewards[0] + rewards[1]).any():  # the largest that all runs of both came to
            text += f" RL's reward at a KL of {kl:g} nat{'s' * (kl != 1)}: {np.mean(rewards[0]):.2f} against {np.mean(rewards[1]):.2f}."
            break
    held = [" and ".join(_of(found, "training_bytes", MIB, 0) for found in own) for own in ((frozen, frozen_rl), (whole, whole_rl))]
    took = [" and ".join(map(_seconds, own)) for own in ((frozen, frozen_rl), (whole, whole_rl))]
    text += f" Preference and RL task: the trainer's tensors take {held[0]} MiB against {held[1]}, the work {took[0]} s against {took[1]}."
    return [text]


def _difference(own: Sequence[Found], others: Sequence[Found]) -> Interval:
    """Of the share of pairs ranked right, over the seeds that both have."""
    by_seed = [{each["seed"]: each["pairs"] for each in found} for found in (own, others)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    cells = [table_of([pairs[seed] for seed in seeds], "right") for pairs in by_seed]
    return bootstrap(cells[0] - cells[1])


def found_by_variant(results: Results[FreezingPlan]) -> tuple[ByVariant, ByVariant, dict[str, list[int]]]:
    """(preference, RL, seeds without a result)."""
    found: dict[str, dict[str, list[Found]]] = {PREFERENCE: {}, RL: {}}
    missing = dict[str, list[int]]()
    for unit in results.plan.units():
        if (result := results.find(unit)) is None:
            missing.setdefault(f"{unit.task} {unit.variant}".strip(), []).append(unit.seed)
        elif unit.task != DATA:
            found[unit.task].setdefault(unit.variant, []).append(result)
    order = list(results.plan.variants)
    preference, rl = ({name: own[name] for name in order if name in own} for own in found.values())
    return preference, rl, missing


def plots(preference: ByVariant, rl: ByVariant) -> str:
    """Means over the seeds by seconds."""
    accuracy = [_line(name, [each["curve"] for each in own], "accuracy") for name, own in preference.items() if name in SHOWN]
    reward = [_line(name, [_timed(each) for each in own], "reward") for name, own in rl.items() if name in SHOWN]
    kl = [_line(name, [_timed(each) for each in own], "reward", "kl") for name, own in rl.items() if name in SHOWN]
    panels = [
        Panel("Preference task", "seconds", "share of held-out pairs", accuracy),
        Panel("RL task", "seconds", "reward above 0", reward),
        Panel("RL task", "KL, nats a reply", "reward above 0", kl),
    ]
    return svg([panel for panel in panels if panel.lines], columns=2)


def _preference(plan: FreezingPlan, found: ByVariant) -> str:
    within = min(_mean(own, lambda each: float(each["seconds"])) for own in found.values())
    rows = []
    for name, own in found.items():
        interval = bootstrap(table_of([each["pairs"] for each in own], "right"))
        at_time = [at(each["curve"], within, "accuracy") for each in own]
        rows.append([name, str(len(own)), with_interval(interval, "{:.3f}".format), _known(at_time, "{:.3f}".format), _seconds(own)])
    headings = ["variant", "seeds", "held-out pairs ranked right, same data", f"after {within:.0f} s", "seconds"]
    return table(headings, rows)


def _rl(plan: FreezingPlan, found: ByVariant) -> str:
    within = min(_mean(own, lambda each: float(each["seconds"])) for own in found.values())
    rows = []
    for name, own in found.items():
        cells = [with_interval(bootstrap(table_of([each["replies"] for each in own], "reward")), "{:.2f}".format)]
        cells += [f"{_mean(own, lambda each: float(np.mean([reply['kl'] for reply in each['replies']]))):.2f}"]
        cells += [_known([at_kl(each["rounds"], kl) for each in own], "{:.2f}".format) for kl in plan.kl]
        cells += [_known([_reward_at(each, within) for each in own], "{:.2f}".format), _seconds(own)]
        rows.append([name, str(len(own)), *cells])
    at_kls = [f"reward at a KL of {kl:g}" for kl in plan.kl]
    return table(["variant", "seeds", "held-out reward, same data", "its KL", *at_kls, f"reward after {within:.0f} s", "seconds"], rows)


def _failed(rl: ByVariant) -> list[str]:
    runs = [(name, each) for name, own in rl.items() for each in own if each["failed"]]
    failed = [f"{name}, seed {each['seed']}: {each['failed'].splitlines()[0]}" for name, each in runs]
    return [paragraph(f"Failed, and counted as they ended: {'; '.join(failed)}.")] if failed else ["No run failed."]


def _costs(plan: FreezingPlan, preference: ByVariant, rl: ByVariant) -> str:
    rows = []
    for name in plan.variants:
        cells = []
        for own in (preference.get(name, []), rl.get(name, [])):
            cells.append(_of(own, "training_bytes", MIB, 0))
            cells.append(f"{_of(own, 'peak', 1, 0)} + {_of(own, 'server_peak', 1, 0)}" if own else "")
        trained, swap = (_of(rl.get(name, []), key, unit, 1) for key, unit in (("num_trained", 1e6), ("swap_bytes", MIB)))
        rows.append([name, trained, swap, *cells])
    headings = ["variant", "policy's numbers in training, millions", "MiB a policy swap"]
    tasks = [f"{task}: {what}" for task in ("preference", "RL") for what in ("trainer's tensors, MiB", "peak of trainer + server, MiB")]
    return table([*headings, *tasks], rows)


def _variants(plan: FreezingPlan) -> str:
    rows = []
    for each in plan.variants.values():
        trained = f"adapters of rank {each.rank} on all linears above" if each.rank else "the layers above, the final norm"
        parts = [f"{each.trunk_layers} of {NUM_LAYERS}", trained] if each.trunk_layers else ["none", "all layers, norms and the embedding"]
        rows.append([each.name, *parts, f"{each.preference_rate:g}", f"{each.policy_rate:g}"])
    return table(["variant", "frozen layers", "trained", "rate, preference", "rate, policy"], rows)


def at(curve: Sequence[Mapping[str, float]], seconds: float, name: str) -> float:
    """The last number that a curve has by then; NaN: none."""
    return next((point[name] for point in reversed(curve) if point["seconds"] <= seconds), math.nan)


def at_kl(rounds: Sequence[Mapping[str, Any]], kl: float) -> float:
    """Reward at a KL, from a + b sqrt(KL) fitted to the rounds; NaN if no round came so far, or if all have one KL."""
    kls = [max(0.0, each["kl"]) for each in rounds]
    if not kls or max(kls) < kl or max(kls) == min(kls):
        return math.nan
    slope, start = np.polyfit(np.sqrt(kls), [each["reward"] for each in rounds], 1)
    return float(start + slope * math.sqrt(kl))


def _reward_at(found: Found, seconds: float) -> float:
    """Mean reward of the last three rounds that began by then."""
    began = [each["reward"] for each in _timed(found) if each["seconds"] <= seconds]
    return float(np.mean(began[-3:])) if began else math.nan


def _timed(found: Found) -> list[dict[str, float]]:
    """Each round's reward, KL and beginning."""
    points, passed = [], 0.0
    for each in found["rounds"]:
        points.append({"seconds": passed, "reward": each["reward"], "kl": max(0.0, each["kl"])})
        passed += sum(each["seconds"].values())
    return points


def _line(name: str, curves: Sequence[Sequence[Mapping[str, float]]], y: str, x: str = "seconds") -> Line:
    """Means over the seeds, point by point, by ascending x."""
    points = []
    for index in range(max(map(len, curves))):
        own = [curve[index] for curve in curves if index < len(curve)]
        points.append((float(np.mean([each[x] for each in own])), max(0.0, float(np.mean([each[y] for each in own])))))
    return Line(name, sorted(points))


def _mean(found: Sequence[Found], number: Callable[[Found], float]) -> float:
    return float(np.mean([number(each) for each in found]))


def _of(found: Sequence[Found], key: str, unit: float, digits: int) -> str:
    """Mean of a number over the seeds; empty where there is none yet."""
    return f"{_mean(found, lambda each: each[key] / unit):.{digits}f}" if found else ""


def _known(numbers: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean over the seeds that came so far, and how many if not all."""
    known = [number for number in numbers if not math.isnan(number)]
    if not known:
        return "not reached"
    return form(float(np.mean(known))) + (f" ({len(known)} of {len(numbers)} seeds)" if len(known) < len(numbers) else "")


def _seconds(found: Sequence[Found]) -> str:
    return f"{_mean(found, lambda each: float(each['seconds'])):.0f}"


_COSTS = (
    "Tensors of the trainer: models, gradients and both moments of what it trains, and the reference where it holds one. Peaks are of "
    "whole processes, code and activations included. The server's part draws, scores and serves all heads; one that serves five trainers "
    "is counted with each of them here. A swap sends the policy's trained weights, in float32."
)
