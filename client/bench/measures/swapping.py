"""P7, P9 and P10: what roles weigh, what streams notice of a swap, and how long new weights take to be served."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polyhead.client.bench.load import Load, Phase
from polyhead.client.bench.ours import ROLES, Ours, moved, timed
from polyhead.client.bench.results import Row, Series, at_most
from polyhead.client.bench.session import Contender, Session
from polyhead.client.wire.options import OnSwapName

MAX_STREAM_TOKENS = 1000  # of 16 streams: all of them together must fit the cache at once
PUSHES_UNDER_LOAD = 3
AFTER_SWAP_S = 0.1  # steps of this time count as steps of the swap


def weights(session: Session) -> Row:
    """P7: as the server counts them. Five heads that differ in every layer are active from the start."""
    status = session.ours.client.status()
    digests = {
        head.digest: head.num_bytes for head in status.resident_heads if head.active and set(head.references) & active_roles(status.active)
    }
    assert len(digests) == len(ROLES), "roles share a head"
    resident = status.trunk_bytes + sum(digests.values())
    ratio = resident / status.model_bytes
    note = f"trunk {status.trunk_bytes >> 20} MiB, five heads {sum(digests.values()) >> 20} MiB, one model {status.model_bytes >> 20} MiB"
    series, goal = (Series(session.ours.name, (ratio,)),), at_most("at most 1.85 models", ratio, 1.85)
    return Row("P7", "resident weights of five different roles", "models", False, series, (goal,), (note,))


def active_roles(active: dict[str, int]) -> set[str]:
    """References of the five roles: other measures leave more heads behind."""
    return {f"{name}@{version}" for name, version in active.items() if name in ROLES}


def swaps(session: Session) -> list[Row]:
    """P9: streams under a row of activations, those that stay on their version and those that follow; then a cached long prompt."""
    versions = policy_versions(session)
    rows = [swap_under_load(session, versions, on_swap) for on_swap in ("pin", "follow")]
    return [*rows, first_token(session, versions)]


def policy_versions(session: Session) -> list[int]:
    """Pushed beforehand, none of them like another."""
    ours, first = session.ours, session.ours.first_weights("policy")
    return [ours.client.push_head("policy", moved(first, seed)) for seed in range(300, 300 + session.plan.sizes.num_swap_versions)]


def swap_under_load(session: Session, versions: list[int], on_swap: OnSwapName) -> Row:
    sizes, ours = session.plan.sizes, session.ours
    turns = itertools.cycle(versions)
    pauses: list[float] = []

    def swap() -> None:
        ours.client.activate({"policy": next(turns)})
        pauses.append(ours.client.status().last_swap_pause_seconds)
        session.interrupt.sleep(AFTER_SWAP_S)

    [swapping], failures = under_load(session, on_swap, [swap], sizes.num_swaps, sizes.swap_gap_s)
    what = f"longest wait for a token, {sizes.swap_streams} streams ({on_swap}), {sizes.num_swaps} activations"
    checks = (
        at_most("failed requests: 0", float(len(failures)), 0.0),
        at_most("the longest wait is at most one step more than a step: 2.0 steps", swapping.longest, 2.0),
        at_most("the engine's own longest pause, in steps: 1.0", max(pauses) / swapping.step_s, 1.0),
    )
    row_id = "P9" if on_swap == "pin" else f"P9 {on_swap}"
    series = waits(ours, {"while swapping": swapping.longest, "left alone": swapping.longest_calm})
    return Row(row_id, what, "steps", False, series, checks, notes_of(swapping, failures))


@dataclass(slots=True)
class Waits:
    """What streams notice of one thing that is done several times, each time against the calm before and after: streams grow longer
    meanwhile, and so do their steps."""

    longest: float = 0.0  # in steps: median gaps of the calm around it
    longest_calm: float = 0.0
    step_s: float = 0.0  # of the first calm

    def note(self, before: Phase, acting: Phase, after: Phase) -> None:
        """One time more."""
        calm = Phase(before.gaps + after.gaps)
        self.step_s = self.step_s or before.median
        self.longest = max(self.longest, acting.longest / calm.median)
        self.longest_calm = max(self.longest_calm, calm.longest / calm.median)


def under_load(
    session: Session, on_swap: OnSwapName, acts: Sequence[Callable[[], None]], num_times: int, calm_s: float
) -> tuple[list[Waits], list[str]]:
    """(what streams notice of each of `acts`, done by turns with calm between them; what failed)"""
    sizes, ours = session.plan.sizes, session.ours
    most = min(MAX_STREAM_TOKENS, ours.client.trunk().context_length // 2)
    found = [Waits() for _ in acts]
    with Load(ours.client, session.work, sizes.swap_streams, sizes.prompt_tokens, most, on_swap) as load:

        def calm() -> Phase:
            phase = load.enter(Phase())
            session.interrupt.sleep(calm_s)
            load.wait_for_gap(phase)
            return phase

        before = calm()
        for waits, act in [*zip(found, acts, strict=True)] * num_times:
            acting = load.enter(Phase())
            act()
            load.wait_for_gap(acting)
            after = calm()
            waits.note(before, acting, after)
            before = after
        failures = list(load.failures)
    return found, failures


def waits(ours: Ours, longest: Mapping[str, float]) -> tuple[Series, ...]:
    """In steps."""
    return tuple(Series(f"{ours.name} {when}", (steps,)) for when, steps in longest.items())


def notes_of(found: Waits, failures: list[str]) -> tuple[str, ...]:
    return (f"a step took {found.step_s * 1e3:.1f} ms at first", *failures[:3])


def first_token(session: Session, versions: list[int]) -> Row:
    """Of a long prompt that was served before the swap, against a new one."""
    client, length = session.ours.client, session.plan.sizes.long_prompt_tokens
    turns = itertools.cycle(versions)

    def wait_for_first(prompt: list[int]) -> float:
        return timed(lambda: client.generate([prompt], temperature=0.0, max_new_tokens=1, ignore_eos=True))[0]

    def after_a_swap() -> float:
        [prompt] = session.work.prompts(1, length)
        wait_for_first(prompt)
        client.activate({"policy": next(turns)})
        return wait_for_first(prompt)

    def cold() -> float:
        return wait_for_first(session.work.prompts(1, length)[0])

    series = session.interleave([Contender(f"{session.ours.name}, cached and swapped", after_a_swap), Contender("a new prompt", cold)])
    ratio = series[0].median / series[1].median
    what = f"time to the first token of a {length}-token prompt"
    return Row("P9 first token", what, "s", False, tuple(series), (at_most("at most 0.3 of cold", ratio, 0.3),))


def push(session: Session) -> list[Row]:
    """P10: push and activate on an idle server, then beside running streams."""
    ours = session.ours
    base = ours.first_weights("policy")
    seeds = itertools.count(400)

    def update(given: dict[str, np.ndarray]) -> float:
        return timed(lambda: ours.client.update({"policy": given}))[0]

    [series] = session.interleave([Contender(ours.name, lambda: update(moved(base, next(seeds))))])
    size = sum(tensor.size for tensor in base.values())
    what = f"push + activate a head of {size / 1e6:.1f} M parameters, f32, {size * 4 / 1e6:.0f} MB"
    check = at_most("at most 1 s", series.median if series.values else None, 1.0)
    note = "elsewhere: 0.18 s by NCCL for 0.6B, 6 to 14 s for 32B"
    return [Row("P10", what, "s", False, (series,), (check,), (note,)), push_under_load(session)]


def push_under_load(session: Session) -> Row:
    """Pushed by a process of its own: one that also reads the streams would wait for itself."""
    sizes = session.plan.sizes
    seconds: list[float] = []
    session.ask_worker("trainer", {"do": "prepare", "pushes": PUSHES_UNDER_LOAD})

    def update() -> None:
        seconds.append(session.ask_worker("trainer", {"do": "push"})["seconds"])

    def be_busy() -> None:
        """For as long, a process that computes: what the client of a push does to streams with which it shares the cores."""
        compute = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # not on and on where this process was killed
        with subprocess.Popen([sys.executable, "-c", compute]) as other:
            try:
                session.interrupt.sleep(seconds[-1])
            finally:
                other.kill()

    (pushing, busy), failures = under_load(session, "pin", [update, be_busy], PUSHES_UNDER_LOAD, sizes.swap_gap_s)
    checks = (
        at_most("failed requests: 0", float(len(failures)), 0.0),
        at_most("the longest wait is at most one step more than a step: 2.0 steps", pushing.longest, 2.0),
    )
    what = f"longest wait for a token while heads are pushed, {sizes.swap_streams} streams"
    notes = (*notes_of(pushing, failures), f"push + activate took {max(seconds):.2f} s at most, {PUSHES_UNDER_LOAD} times")
    longest = {"while pushing": pushing.longest, "beside a busy process": busy.longest, "left alone": pushing.longest_calm}
    series = waits(session.ours, longest)
    return Row("P10 load", what, "steps", False, series, checks, notes)
