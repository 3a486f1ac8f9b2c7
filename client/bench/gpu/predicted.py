"""What a decode step should take on a GPU, on paper: from what it must read, what it computes, and what our code launches.

Written before any run on a GPU, so that a run can contradict it. The counts of kernels are those that tests count on a CPU
(tests/bench/test_predicted.py); the times of a kernel and of the host are assumptions, and stand in `Costs`.

usage: python -m polyhead.client.bench.gpu.predicted
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from polyhead.client.bench.gpu.models import LLAMA_8B, Shape
from polyhead.client.bench.gpu.work import PLANS, config_for
from polyhead.server.engine.layers.cuda.paged import Launch
from polyhead.server.engine.layers.linears import Quantization

STREAMS = (1, 8, 64, 256)
CONTEXT = 192  # tokens before the one that is drawn: a prompt of 128, and half of 128 more
BLOCK = 16  # tokens


@dataclass(frozen=True, slots=True)
class Card:
    """As its maker states it."""

    name: str
    bandwidth: float  # bytes a second
    flops: dict[Quantization, float]  # a second, dense, of products in this precision
    num_processors: int


H200 = Card("H200", 4.8e12, {"none": 989e12, "int8": 1979e12, "fp8": 1979e12}, 132)


@dataclass(frozen=True, slots=True)
class Costs:
    """Assumed, not measured on a GPU."""

    bandwidth_share: float = 0.80  # of the card's, that products of a few rows and attention read at
    flops_share: float = 0.60  # of the card's, where a product is bound by them
    kernel_s: float = 2.0e-6  # beginning and end of a kernel, beside what it reads: of a recorded step
    eager_s: float = 2.5e-6  # the same of one that is launched alone, while the host is ahead
    host_s: float = 1.4e-3  # of Python for a step, and for each text in it: half of the processor time on two cores of a shared server,
    host_text_s: float = 27e-6  # which is about a third as fast as what stands beside such a card


@dataclass(frozen=True, slots=True)
class Predicted:
    """A decode step."""

    held: Quantization
    streams: int
    num_bytes: int
    flops: int
    num_kernels: int  # recorded
    num_launches: int  # beside the recordings
    roofline_s: float  # nothing but bytes and operations, at the card's own figures
    device_s: float
    host_s: float  # works on the step before meanwhile

    @property
    def step_s(self) -> float:
        return max(self.device_s, self.host_s)

    @property
    def share(self) -> float:
        """Of the roofline."""
        return self.roofline_s / self.step_s


def predict(held: Quantization, streams: int, shape: Shape = LLAMA_8B, card: Card = H200, costs: Costs = Costs()) -> Predicted:
    """A step of so many streams with weights held like that, at temperature 1."""
    weights, kv = weight_bytes(shape, held), streams * CONTEXT * kv_bytes(shape)
    flops = streams * (2 * num_weights(shape) + 4 * CONTEXT * shape.num_heads * shape.head_dim * shape.num_layers)
    kernels = num_kernels(shape, held, streams, card.num_processors)
    reads, computes = (weights + kv) / card.bandwidth, flops / card.flops[held]
    works = max(reads / costs.bandwidth_share, computes / costs.flops_share)
    device = works + kernels * costs.kernel_s + LAUNCHES * costs.eager_s
    host = costs.host_s + streams * costs.host_text_s
    return Predicted(held, streams, weights + kv, flops, kernels, LAUNCHES, max(reads, computes), device, host)


# ---- counted


LAYER_KERNELS: dict[Quantization, int] = {
    "none": 9,  # norm, qkv, turn and cache, attention, out with sum, norm, gate and up, silu x up, down with sum
    "int8": 16,  # four products of three: quantise, product, descale with sum or silu x up; two norms, turn and cache, attention
    "fp8": 14,  # four products of two: quantise, product with scales; norm, turn and cache, attention, sum and norm, silu x up, sum
}
TRUNK_KERNELS = 4  # rows of the table, of the embedding and of the rotations; states to their cache
TAP_KERNELS = 1
HEAD_KERNELS = 7  # rows of the table, of states and of the rotations; row numbers; last norm; output; to float32
OUTPUT_KERNELS: dict[Quantization, int] = {"none": 0, "int8": 2, "fp8": 1}  # more than one
LAUNCHES = 47  # copies, tokens to where the trunk reads them, and the sampler at temperature 1


def num_kernels(shape: Shape, held: Quantization, streams: int, num_processors: int) -> int:
    """Of the recorded steps of trunk and head."""
    group = shape.num_heads // shape.num_kv_heads
    most_keys = config_for(shape, PLANS["8b"], torch.bfloat16).max_context + BLOCK  # steps are recorded for the longest text
    launch = Launch.of(streams, 1, most_keys, shape.num_kv_heads, group, shape.head_dim, num_processors)
    merges = shape.num_layers if launch.num_splits > 1 else 0
    return shape.num_layers * LAYER_KERNELS[held] + merges + TRUNK_KERNELS + TAP_KERNELS + HEAD_KERNELS + OUTPUT_KERNELS[held]


def matrices(shape: Shape) -> Iterator[tuple[int, int]]:
    """(out, in) of a layer."""
    kv = shape.num_kv_heads * shape.head_dim
    yield from ((shape.d_model + 2 * kv, shape.d_model), (shape.d_model, shape.d_model))
    yield from ((2 * shape.d_inner, shape.d_model), (shape.d_model, shape.d_inner))


def num_weights(shape: Shape) -> int:
    """That a step multiplies by: every layer, and the output; of the embedding it reads a row a stream."""
    return shape.num_layers * sum(outputs * inputs for outputs, inputs in matrices(shape)) + shape.vocab_size * shape.d_model


def weight_bytes(shape: Shape, held: Quantization) -> int:
    """Of those, as they are held: in 8 bits with a scale of 4 bytes for each output; norms in bfloat16."""
    norms = 2 * (2 * shape.num_layers + 1) * shape.d_model
    if held == "none":
        return 2 * num_weights(shape) + norms
    outputs = shape.num_layers * sum(outputs for outputs, _ in matrices(shape)) + shape.vocab_size
    return num_weights(shape) + 4 * outputs + norms


def kv_bytes(shape: Shape) -> int:
    """Keys and values of one token, in bfloat16."""
    return 2 * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim


def table(card: Card = H200) -> str:
    """As docs/benchmarks.md has it."""
    names = {"none": "bfloat16", "int8": "int8", "fp8": "fp8"}
    lines = [
        "| weights | streams | bytes | kernels recorded, launched | roofline | step | share of the roofline | bound by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for held in LAYER_KERNELS:
        for streams in STREAMS:
            each = predict(held, streams, card=card)
            bound = "the host" if each.host_s > each.device_s else "the GPU"
            lines.append(
                f"| {names[held]} | {streams} | {each.num_bytes / 1e9:.1f} GB | {each.num_kernels}, {each.num_launches} "
                f"| {each.roofline_s * 1e3:.2f} ms | {each.step_s * 1e3:.2f} ms | {each.share:.0%} | {bound} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
