"""The readings of one pass are taken together: as many reads of the device as there are slices, and the numbers of one alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.server.engine.layers import sampler
from polyhead.server.engine.layers.sampler import Draws
from polyhead.server.engine.schedule.scored_rows import SLICE_ROWS, Part, take_rows
from polyhead.server.engine.work.request import Output, Reading
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence

VOCAB = 32
SHAPED = SamplingParams(temperature=0.7, top_k=5, repetition_penalty=1.3)
ASKS = [(None, False, 0), (SHAPED, True, 0), (None, True, 3), (SHAPED, False, 2)]  # parameters, entropies, likeliest tokens


class CountingDraw:
    """The sampler, and how many rows it was asked about each time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, logits: torch.Tensor, rows: list[Any]) -> Draws:
        self.sizes.append(len(rows))
        return sampler.draw(logits, rows)


def reading_of(output: Output, num: int, ask: tuple[SamplingParams | None, bool, int] = ASKS[0]) -> Reading:
    params, with_entropy, num_top = ask
    request = SimpleNamespace(score_sampling=params, with_entropy=with_entropy, num_top=num_top)
    head = SimpleNamespace(reference="head@1", manifest=SimpleNamespace(violated_token_id=3, followed_token_id=7))
    tokens = TokenSequence([(5 * at + num) % VOCAB for at in range(num + 1)], b"", num_wanted=0)
    sample: Any = SimpleNamespace(request=request)
    return Reading(sample, head, "head", tokens, output, 0, num)  # type: ignore[arg-type]


def taken(readings: list[Reading], rows: torch.Tensor, gap: int = 0) -> CountingDraw:
    """All in one pass, with `gap` rows of others between them."""
    draw, parts, at = CountingDraw(), list[Part](), 0
    for reading in readings:
        parts.append(Part(reading, at, reading.end, 0))
        at += reading.end + gap
    take_rows(parts, rows, draw)
    return draw


def numbers(reading: Reading) -> list[np.ndarray]:
    """All that was recorded, whatever slices it came in."""
    kinds: list[list[np.ndarray]] = [reading.values, reading.sampling_values, reading.entropies, *map(list, zip(*reading.top, strict=True))]
    return [np.concatenate(each) for each in kinds if each]


@pytest.mark.parametrize("gap", [0, 1])
def test_logprobs_of_several_readings_are_looked_up_together(gap: int) -> None:
    """Rows of other readings between them, long ones over several slices, each with parameters of its own: to the last bit."""
    sizes = [3, SLICE_ROWS + 40, 1, 30]
    rows = torch.randn(sum(sizes) + gap * len(sizes), VOCAB, generator=torch.Generator().manual_seed(0))
    together = [reading_of(Output.LOGPROBS, num, ask) for num, ask in zip(sizes, ASKS, strict=True)]
    draw = taken(together, rows, gap)
    assert draw.sizes == [SLICE_ROWS, SLICE_ROWS, sum(sizes) - 2 * SLICE_ROWS]
    at = 0
    for num, ask, reading in zip(sizes, ASKS, together, strict=True):
        alone = reading_of(Output.LOGPROBS, num, ask)
        taken([alone], rows[at : at + num])
        assert [each.shape[0] for each in numbers(reading)] == [num] * len(numbers(alone))
        for found, wanted in zip(numbers(reading), numbers(alone), strict=True):
            np.testing.assert_array_equal(found, wanted)
        at += num + gap


def test_answers_of_many_rules_take_one_look() -> None:
    rows = torch.randn(2 * SLICE_ROWS, VOCAB, generator=torch.Generator().manual_seed(1))
    readings = [reading_of(Output.ANSWERS, 2) for _ in range(SLICE_ROWS)]
    assert taken(readings, rows).sizes == [SLICE_ROWS, SLICE_ROWS]
    wanted = rows.log_softmax(-1)[1::2][:, [3, 7]]
    torch.testing.assert_close(torch.from_numpy(np.stack([reading.values[0] for reading in readings])), wanted)


def test_scalars_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = list[Any](), torch.Tensor.numpy
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self, **options: reads.append(self.shape) or read(self, **options))
    readings = [reading_of(Output.SCALARS, num) for num in (1, 4, 2)]
    rows = torch.arange(7.0)
    rows[6] = float("nan")
    assert taken(readings, rows).sizes == []
    assert reads == [(7,)]
    assert [reading.values[0].tolist() for reading in readings[:2]] == [[0.0], [1.0, 2.0, 3.0, 4.0]]
    assert [reading.error for reading in readings] == ["", "", "head@1 gave a number that is not finite"]
