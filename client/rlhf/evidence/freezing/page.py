"""What the result files say about freezing: the same two tasks with more and less of the model trained. Knows no server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.client.rlhf.evidence.freezing.plan import DATA, PREFERENCE, RL, FreezingPlan
from polyhead.client.rlhf.evidence.intervals import bootstrap, table_of
from polyhead.client.rlhf.evidence.results import Found, Results
from polyhead.client.rlhf.evidence.wording import not_run, with_interval
from polyhead.client.rlhf.markdown import paragraph, table

IMAGE = "rlhf-evidence-freezing.svg"
MIB = 1 << 20
NUM_LAYERS = 30  # of SmolLM2-135M
SHOWN = ("frozen-90", "frozen-80", "frozen-50", "everything")  # a plot has four colours
COMPARED = ("frozen-80", "everything")  # in brief
LATER_KL = (6.0,)  # which no plan names: where everything and the next variant have rounds
NEAR = 2.0  # factor between a KL and the rounds on both sides of it
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
        f"tokens, rewarded by both judges, KL penalty {config.kl_weight:g} per token. LoRA policies have a value head that is "
        "trained whole."
    )
    matched = (
        "The same data: after all steps or rounds. The same time: where a variant was when the quickest one had finished; rates are "
        "constant, so this is what a shorter run would have given. Accuracy is measured at each quarter of the data, and the last "
        "measurement before that time counts. The same KL: reward = a + b sqrt(KL), fitted to a run's rounds (the shape that Gao et al. "
        "2022 and Bai et al. 2022 find) and read at that KL, where the run has a round on each side within a factor of two. This "
        f"condition, and the KL of {' and '.join(f'{kl:g}' for kl in LATER_KL)}, were added when the runs had been read: the first update "
        "of everything goes past the KLs of the plan."
    )
    return [paragraph(what), _variants(plan), paragraph(preference), paragraph(rl), paragraph(matched)]


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
        blocks += [f"![Held-out accuracy and training reward by time]({images}/{IMAGE})", paragraph(_PLOT)]
    return blocks


def brief(results: Results[FreezingPlan]) -> list[str]:
    """What the server's own split costs against everything trained, and what the trainer holds; none before both have been run."""
    preference, rl, _ = found_by_variant(results)
    if not all(name in found for found in (preference, rl) for name in COMPARED):
        return []
    (frozen, frozen_rl), (whole, whole_rl) = ([found[name] for found in (preference, rl)] for name in COMPARED)
    layers = f"Freezing {results.plan.variants[COMPARED[0]].trunk_layers} of {NUM_LAYERS} layers instead of none"
    return [
        f"{layers}, the same data: held-out pairs ranked right {_compared(frozen, whole, 'pairs', 'right', '{:.3f}')}; RL's held-out "
        f"reward {_compared(frozen_rl, whole_rl, 'replies', 'reward', '{:.2f}')}; replies that please both judges "
        f"{_compared(frozen_rl, whole_rl, 'replies', 'kept_and_preferred', '{:.0%}')}.",
        f"{layers}, the same time: {_same_time(frozen, whole)} The preference and the RL task take {_seconds(frozen)} and "
        f"{_seconds(frozen_rl)} s against {_seconds(whole)} and {_seconds(whole_rl)} s; with everything trained transformers draws, and "
        "otherwise the server.",
        f"{layers}, memory: the trainer's tensors take {_of(frozen, 'training_bytes', MIB, 0)} and "
        f"{_of(frozen_rl, 'training_bytes', MIB, 0)} MiB against {_of(whole, 'training_bytes', MIB, 0)} and "
        f"{_of(whole_rl, 'training_bytes', MIB, 0)}; the peak of trainer and server together is {_peak(frozen):.0f} and "
        f"{_peak(frozen_rl):.0f} MiB against {_peak(whole):.0f} and {_peak(whole_rl):.0f}.",
    ]


def _compared(own: Sequence[Found], others: Sequence[Found], rows: str, measure: str, form: str) -> str:
    """Both means and their difference, over the seeds that both have."""
    by_seed = [{each["seed"]: each[rows] for each in found} for found in (own, others)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    cells = [table_of([found[seed] for seed in seeds], measure) for found in by_seed]
    means = " against ".join(form.format(np.nanmean(each)) for each in cells)
    return f"{means}, difference {with_interval(bootstrap(cells[0] - cells[1]), form.replace(':', ':+').format)}"


def _same_time(own: Sequence[Found], others: Sequence[Found]) -> str:
    """All pairs, in the seeds in which the slower ones had been measured by then."""
    within = _mean(own, lambda each: float(each["seconds"]))
    early = {each["seed"]: at(each["curve"], within, "accuracy") for each in others}
    late = {each["seed"]: each["curve"][-1]["accuracy"] for each in own}
    seeds = [seed for seed in late if not math.isnan(early.get(seed, math.nan))]
    if not seeds:
        return f"after {within:.0f} s the slower one had not been measured."
    shares = " against ".join(f"{np.mean([found[seed] for seed in seeds]):.3f}" for found in (late, early))
    return f"after {within:.0f} s {shares} of all held-out pairs (seeds {', '.join(map(str, seeds))})."


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
        Panel("RL task", "seconds", "reward", reward),
        Panel("RL task", "KL, nats a reply", "reward", kl),
    ]
    return svg([panel for panel in panels if panel.lines], columns=2)


def _preference(plan: FreezingPlan, found: ByVariant) -> str:
    within = min(_mean(own, lambda each: float(each["seconds"])) for own in found.values())
    rows = []
    for name, own in found.items():
        interval = bootstrap(table_of([each["pairs"] for each in own], "right"))
        pooled = f"{_mean(own, lambda each: float(each['curve'][-1]['accuracy'])):.3f}"
        at_time = _known([at(each["curve"], within, "accuracy") for each in own], "{:.3f}".format, "not measured by then")
        rows.append([name, str(len(own)), with_interval(interval, "{:.3f}".format), pooled, at_time, _seconds(own)])
    headings = [
        "variant",
        "seeds",
        "held-out pairs ranked right, mean over questions",
        "over all pairs",
        f"over all pairs after {within:.0f} s",
    ]
    return table([*headings, "seconds in all"], rows)


def _rl(plan: FreezingPlan, found: ByVariant) -> str:
    """Two tables: after the same data, and at the same KL and time."""
    within = min(_mean(own, lambda each: float(each["seconds"])) for own in found.values())
    kls, ends, matched = (*plan.kl, *LATER_KL), [], []
    for name, own in found.items():
        cells = [
            with_interval(bootstrap(table_of([each["replies"] for each in own], measure)), form.format)
            for measure, form in (("reward", "{:.2f}"), ("kept_and_preferred", "{:.0%}"), ("broken", "{:.0%}"), ("kl", "{:.1f}"))
        ]
        ends.append([name, str(len(own)), *cells])
        at_kls = [_known([at_kl(each["rounds"], kl) for each in own], "{:.2f}".format, "no round near it") for kl in kls]
        parts = " + ".join(f"{np.mean([_a_round(each, part) for each in own]):.1f}" for part in ("rollout", "update", "push"))
        at_time = _known([_reward_at(each, within) for each in own], "{:.2f}".format, "not measured by then")
        matched.append([name, f"{_mean(own, _first_reward):.2f}", *at_kls, at_time, _seconds(own), parts])
    held_out = ["held-out reward, same data", "kept and preferred", "rule broken", "KL, nats a reply"]
    training = ["reward of the first round", *(f"at a KL of {kl:g}" for kl in kls), f"after {within:.0f} s", "seconds in all"]
    said = f"Rewards of the training rounds, {plan.config.prompts * plan.config.samples} replies each, means over the seeds:"
    last = "seconds a round: replies + update + push"
    return "\n\n".join([table(["variant", "seeds", *held_out], ends), said, table(["variant", *training, last], matched)])


def _first_reward(found: Found) -> float:
    """Of the policy that nothing has trained yet."""
    return float(found["rounds"][0]["reward"]) if found["rounds"] else math.nan


def _a_round(found: Found, part: str) -> float:
    return float(np.mean([each["seconds"][part] for each in found["rounds"]])) if found["rounds"] else math.nan


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
            cells.append(f"{_of(own, 'peak', 1, 0)} + {_of(own, 'server_peak', 1, 0)} = {_peak(own):.0f}" if own else "")
        trained, swap = (_of(rl.get(name, []), key, unit, 1) for key, unit in (("num_trained", 1e6), ("swap_bytes", MIB)))
        rows.append([name, trained, swap, *cells])
    headings = ["variant", "trained parameters of the policy, millions", "MiB a policy swap"]
    tasks = [f"{task}: {what}" for task in ("preference", "RL") for what in ("trainer's tensors, MiB", "peak of trainer + server, MiB")]
    return table([*headings, *tasks], rows)


def _variants(plan: FreezingPlan) -> str:
    rows = []
    for each in plan.variants.values():
        trained = f"adapters of rank {each.rank} on all linears above" if each.rank else "the layers above, the final norm"
        parts = [f"{each.trunk_layers} of {NUM_LAYERS}", trained] if each.trunk_layers else ["none", "all layers, norms and the embedding"]
        rows.append([each.name, *parts, f"{each.preference_rate:g}", f"{each.policy_rate:g}"])
    return table(["variant", "frozen layers", "trained", "learning rate, preference", "learning rate, policy"], rows)


def at(curve: Sequence[Mapping[str, float]], seconds: float, name: str) -> float:
    """The last number that a curve has by then; NaN: none."""
    return next((point[name] for point in reversed(curve) if point["seconds"] <= seconds), math.nan)


def at_kl(rounds: Sequence[Mapping[str, Any]], kl: float) -> float:
    """Reward at a KL, from a + b sqrt(KL) fitted to the rounds; NaN if they have none on each side of it within a factor of NEAR."""
    kls = [max(0.0, each["kl"]) for each in rounds]
    if not (any(kl / NEAR <= each <= kl for each in kls) and any(kl <= each <= kl * NEAR for each in kls)) or max(kls) == min(kls):
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


def _known(numbers: Sequence[float], form: Callable[[float], str], none: str) -> str:
    """Mean over the seeds that have the number, and how many if not all; `none` if no seed has it."""
    known = [number for number in numbers if not math.isnan(number)]
    if not known:
        return none
    return form(float(np.mean(known))) + (f" ({len(known)} of {len(numbers)} seeds)" if len(known) < len(numbers) else "")


def _peak(found: Sequence[Found]) -> float:
    """MiB of trainer and server together, means over the seeds; they may come at different moments."""
    return _mean(found, lambda each: float(each["peak"] + each["server_peak"]))


def _seconds(found: Sequence[Found]) -> str:
    return f"{_mean(found, lambda each: float(each['seconds'])):.0f}"


_COSTS = (
    "Tensors of the trainer: models, gradients and both moments of what it trains, and the reference where it holds one. Peaks are of "
    "whole processes, code and activations included; the sum is of two peaks that may come at different moments. The server's part draws, "
    "scores and serves all heads. Here each run has a server of its own; several trainers would share one. A swap sends the policy's "
    "trained weights, in float32."
)
_PLOT = "The curves of the RL task are rewards of the training rounds. The two LoRA variants are in the tables only."
