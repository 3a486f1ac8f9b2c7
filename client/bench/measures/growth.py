"""How time and memory grow with heads, context, streams and rules: our own data alone, and plots of it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from polyhead.client import Client, PolyheadError, Rule
from polyhead.client.bench.measures.scoring import more_heads
from polyhead.client.bench.ours import timed
from polyhead.client.bench.plan import flags_of
from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.client.bench.results import Row, Series
from polyhead.client.bench.session import Session
from polyhead.server.config import ServeConfig

MIB = 1 << 20
MOST_RUNS = 3
DECODED = 16  # tokens drawn behind a long context
FIRST_POLL_S, POLL_S = 0.005, 0.05  # soon enough to see a short call; rare enough to cost a long one nothing


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity against another: every value of every point."""

    title: str
    x_label: str
    unit: str
    points: dict[int, list[float]]
    is_log_x: bool = True

    @property
    def panel(self) -> Panel:
        medians = [(float(x), statistics.median(values)) for x, values in self.points.items()]
        return Panel(self.title, self.x_label, self.unit, [Line(self.title, medians)], self.is_log_x)

    def row(self, name: str) -> Row:
        """A series for each point."""
        series = tuple(Series(f"{self.x_label}: {x}", tuple(values)) for x, values in self.points.items())
        return Row(f"growth {name}", self.title, self.unit, False, series, is_contest=False)


def growth(session: Session) -> list[Row]:
    """A row a curve. With `plots`, a picture for each of the four, its curves side by side."""
    rows: list[Row] = []
    for name, measure in (("heads", by_heads), ("context", by_context), ("streams", by_streams), ("rules", by_rules)):
        session.progress(f"growth with {name}")
        curves = measure(session)
        rows += [curve.row(name) for curve in curves]
        if session.plan.plots is not None:
            session.plan.plots.mkdir(parents=True, exist_ok=True)
            (session.plan.plots / f"{name}.svg").write_text(svg([curve.panel for curve in curves]), encoding="utf-8")
    return rows


def by_heads(session: Session) -> list[Curve]:
    """Scoring a batch of new texts with one head, two, ...; each has layers of its own."""
    sizes, client = session.plan.sizes, session.ours.client
    names = more_heads(session.ours, "value", max(sizes.growth_heads))
    status = client.status()
    bytes_of = {reference: head.num_bytes for head in status.resident_heads for reference in head.references}

    def score(count: int) -> None:
        texts = session.work.prompts(sizes.batch_prompts, sizes.text_tokens)
        client.score([(text[:-1], text[-1:]) for text in texts], heads=names[:count], terminated=True)

    def weights(count: int) -> float:
        return (status.trunk_bytes + sum(bytes_of[f"{name}@{status.active[name]}"] for name in names[:count])) / MIB

    seconds, _ = timed_and_watched(session, sizes.growth_heads, score)
    title = f"Scoring {sizes.batch_prompts} new texts of {sizes.text_tokens} tokens"
    return [
        Curve(title, "heads", "s", seconds, False),
        Curve("Weights, trunk included", "heads", "MiB", {count: [weights(count)] for count in sizes.growth_heads}, False),
    ]


def by_context(session: Session) -> list[Curve]:
    """Reading a new prompt, drawing tokens behind it, and what the cache holds meanwhile."""
    sizes, client = session.plan.sizes, session.ours.client
    longest = client.trunk().context_length - DECODED
    lengths = [length for length in sizes.growth_context if length <= longest]

    first: Values = {length: [] for length in lengths}
    next_ms: Values = {length: [] for length in lengths}

    def draw(length: int) -> None:
        [prompt] = session.work.prompts(1, length)
        started_at = time.perf_counter()
        with client.stream(prompt, temperature=0.0, max_new_tokens=1 + DECODED, ignore_eos=True) as stream:
            first_at, *_, last_at = [time.perf_counter() for _ in stream]  # pieces: tokens that waited together come as one
        first[length].append(first_at - started_at)
        next_ms[length].append((last_at - first_at) / DECODED * 1e3)

    _, memory = timed_and_watched(session, lengths, draw)
    for values in (first, next_ms):
        del values[lengths[0]][0]  # of the run before all others, which does not count
    return [
        Curve("First token of a new prompt", "tokens of context", "s", first),
        Curve("Each next token", "tokens of context", "ms", next_ms),
        Curve("Cache", "tokens of context", "MiB", memory),
    ]


def by_streams(session: Session) -> list[Curve]:
    sizes, ours = session.plan.sizes, session.ours

    def decode(streams: int) -> None:
        ours.decode(session.work.prompts(streams, sizes.prompt_tokens), sizes.num_tokens)

    seconds, memory = timed_and_watched(session, sizes.growth_streams, decode)
    rates = {streams: [streams * sizes.num_tokens / each for each in values] for streams, values in seconds.items()}
    return [
        Curve(f"Decoding {sizes.num_tokens} tokens each", "streams", "tokens/s", rates),
        Curve("Time of a step", "streams", "ms", {count: [each / sizes.num_tokens * 1e3 for each in seconds[count]] for count in seconds}),
        Curve("Cache", "streams", "MiB", memory),
    ]


def by_rules(session: Session) -> list[Curve]:
    """After a dialogue that was seen before, with another rule; never the same dialogue twice, or rules would be found in the cache."""
    sizes, client = session.plan.sizes, session.ours.client
    questions = session.ours.questions(session.work, max(sizes.growth_rules) + 1, sizes.dialogue_rule_tokens)
    *asked, other = [Rule(key, text) for key, (text, _) in questions.items()]
    dialogue: list[int] = []

    def ask(rules: Sequence[Rule]) -> None:
        client.score([(dialogue[:-1], dialogue[-1:])], heads=["rule"], rules=rules, terminated=True)

    def see(_: int) -> None:
        [dialogue[:]] = session.work.prompts(1, sizes.dialogue_tokens)
        ask([other])

    seconds, memory = timed_and_watched(session, sizes.growth_rules, lambda count: ask(asked[:count]), see)
    title = f"Rules of {sizes.dialogue_rule_tokens} tokens, dialogue of {sizes.dialogue_tokens} cached"
    return [Curve(title, "rules", "s", seconds), Curve("Cache", "rules", "MiB", memory)]


Values = dict[int, list[float]]


def timed_and_watched(
    session: Session, points: Sequence[int], work: Callable[[int], object], prepare: Callable[[int], object] = lambda point: None
) -> tuple[Values, Values]:
    """(seconds, most MiB of cache in use) of each run at each point, after one run that does not count. `prepare` is not timed."""
    seconds: Values = {point: [] for point in points}
    memory: Values = {point: [] for point in points}
    block_mib = mib_of_a_block(session)
    prepare(points[0])
    work(points[0])
    for _ in range(min(MOST_RUNS, session.plan.runs)):
        for point in points:
            prepare(point)
            with Peak(session.ours.client) as peak:
                seconds[point].append(timed(partial(work, point))[0])
            memory[point].append(peak.num_blocks * block_mib)
    return seconds, memory


def mib_of_a_block(session: Session) -> float:
    """With its share of the heads' cache."""
    flags = flags_of(session.plan.server_flags(session.plan.servers[0]))
    cache_bytes = int(flags.get("cache_bytes", ServeConfig.model_fields["cache_bytes"].default))
    return cache_bytes / MIB / session.ours.client.status().num_blocks


class Peak:
    """Most blocks that were in use at once while the block of code ran, by asking again and again."""

    def __init__(self, client: Client) -> None:
        self.num_blocks = 0
        self._client = client
        self._failure: PolyheadError | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _watch(self) -> None:
        wait_s = FIRST_POLL_S
        try:
            while not self._is_over.is_set():
                self.num_blocks = max(self.num_blocks, self._client.status().num_used_blocks)
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, POLL_S)
        except PolyheadError as error:
            self._failure = error
