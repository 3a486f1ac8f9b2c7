"""P1 to P3 and P8: decode throughput beside the peers, beside our own engine without the wire, and with --deterministic."""

from __future__ import annotations

from polyhead.client.bench.ours import Ours
from polyhead.client.bench.plan import Sizes
from polyhead.client.bench.results import Row, Series, at_least, beats, best, named
from polyhead.client.bench.session import Contender, Session, System
from polyhead.client.bench.worker import WorkerFailed

GOALS = {  # against the best peer
    "P1": (1.25, "at least 1.25x the best peer"),
    "P2": (1.1, "at least 1.1x the best peer"),
    "P3": (0.7, "at least 0.7x the best peer (1.0x later)"),
}
VLLM_GOAL = (2.5, "at least 2.5x vLLM-CPU")  # P1


def decode(session: Session, measure: str) -> Row:
    """One number of streams: every variant of ours, every peer."""
    streams = session.plan.sizes.streams[measure]
    ours = [our_decoding(session, session.server(variant), streams) for variant in session.plan.servers]
    theirs = [their_decoding(session, system, streams) for system in session.systems]
    series = session.interleave([*ours, *theirs])
    return decode_row(session.plan.sizes, measure, series, len(ours))


def decode_row(sizes: Sizes, measure: str, series: list[Series], num_ours: int) -> Row:
    """The best variant of ours against the best precision of every peer; our other variants are shown after it."""
    what = f"decode, {sizes.streams[measure]} streams: {sizes.num_tokens} greedy tokens from {sizes.prompt_tokens}-token prompts"
    ours, rivals = best(series[:num_ours], True) or series[0], series[num_ours:]
    target, goal = GOALS[measure]
    checks = [beats(goal, ours, rivals, True, target)]
    if measure == "P1":
        target, goal = VLLM_GOAL
        checks.append(beats(goal, ours, named(rivals, "vLLM"), True, target))
    rest = [each for each in series if each is not ours]
    return Row(measure, what, "tokens/s", True, (ours, *rest), tuple(checks))


def our_decoding(session: Session, ours: Ours, streams: int) -> Contender:
    sizes = session.plan.sizes

    def measure() -> float:
        prompts = session.work.prompts(streams, sizes.prompt_tokens)
        return streams * sizes.num_tokens / ours.decode(prompts, sizes.num_tokens)

    return Contender(ours.name, measure)


def their_decoding(session: Session, system: System, streams: int) -> Contender:
    sizes = session.plan.sizes

    def measure() -> float:
        prompts = session.work.prompts(streams, sizes.prompt_tokens)
        answer = session.ask(system, {"prompts": prompts, "num_tokens": sizes.num_tokens})
        return streams * sizes.num_tokens / checked_seconds(answer, streams, sizes.num_tokens)

    return Contender(system.name, measure)


def checked_seconds(answer: dict[str, object], streams: int, num_tokens: int) -> float:
    """WorkerFailed unless every stream has every token: a faster answer that is shorter is no answer."""
    completions, seconds = answer["completions"], answer["seconds"]
    assert isinstance(completions, list)
    assert isinstance(seconds, float)
    lengths = [len(each) for each in completions]
    if lengths != [num_tokens] * streams:
        raise WorkerFailed(f"{num_tokens} tokens were asked of each of {streams} streams, and these came: {lengths}")
    return seconds


def deterministic(session: Session) -> Row:
    """What the promise of the same bits costs: the main server beside one that gives it."""
    streams, flags = session.plan.sizes.streams["P1"], session.plan.servers[0]
    promised = session.server(f"{flags} --deterministic".strip())
    series = session.interleave([our_decoding(session, ours, streams) for ours in (promised, session.ours)])
    return Row("deterministic", f"decode, {streams} streams, with --deterministic and without", "tokens/s", True, tuple(series))


def wire(session: Session) -> Row:
    """P8: the main server through gRPC, and the same engine in a process of its own without it."""
    sizes = session.plan.sizes
    streams = sizes.streams["P1"]

    def in_process() -> float:
        prompts = session.work.prompts(streams, sizes.prompt_tokens)
        answer = session.ask_worker("engine", {"prompts": prompts, "num_tokens": sizes.num_tokens})
        return streams * sizes.num_tokens / checked_seconds(answer, streams, sizes.num_tokens)

    series = session.interleave([our_decoding(session, session.ours, streams), Contender("its engine in-process", in_process)])
    row = Row("P8", f"through gRPC against the engine alone, {streams} streams", "tokens/s", True, tuple(series))
    reached = row.times_better(series[1])
    check = at_least("at least 0.95 of the engine's own", reached, 0.95)
    return Row(row.id, row.what, row.unit, row.is_rate, row.series, (check,))
