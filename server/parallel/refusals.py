"""Settings that do not go with several ranks, each with the reason. Knows nothing of models: shares.py refuses those."""

from __future__ import annotations

from typing import Protocol

from polyhead.heads.format.precision import Precision

EIGHT_BIT = (Precision.INT8, Precision.FP8)


class Asked(Protocol):
    """The settings that matter here: of config.ServeConfig."""

    @property
    def tensor_parallel(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def heads_on(self) -> str: ...
    @property
    def has_heads_apart(self) -> bool: ...
    @property
    def layers(self) -> str: ...
    @property
    def deterministic(self) -> bool: ...
    @property
    def cuda_graphs(self) -> bool: ...
    @property
    def trunk_dtype(self) -> Precision: ...
    @property
    def head_dtype(self) -> Precision: ...
    @property
    def output_dtype(self) -> Precision | None: ...


def why_not(asked: Asked) -> str:
    """The first setting that cannot be had with several ranks, as a sentence and a hint; empty if all can."""
    number = f"--tensor-parallel {asked.tensor_parallel}"
    dtypes = {"trunk_dtype": asked.trunk_dtype, "head_dtype": asked.head_dtype, "output_dtype": asked.output_dtype}
    for name, precision in dtypes.items():
        if precision in EIGHT_BIT:
            return f"{number} serves float32 and bfloat16: {name} is {precision}\nhint: leave out --{name.replace('_', '-')}"
    if asked.layers == "plain":
        return f"{number} needs our own layers: transformers' are not split over ranks\nhint: leave out --layers plain"
    if asked.deterministic:
        return f"{number} cannot promise the same bits: sums over ranks round elsewhere\nhint: leave out --deterministic"
    if asked.has_heads_apart:
        return f"{number} has heads on every rank, beside the trunk: --head-device is {asked.heads_on}\nhint: leave out --head-device"
    if asked.device not in ("cpu", "cuda", "cuda:0"):
        hint = "CUDA_VISIBLE_DEVICES chooses other GPUs"
        return f"{number} takes the GPUs from cuda:0 on, one for each rank: --device is {asked.device}\nhint: --device cuda; {hint}"
    if asked.device != "cpu" and asked.cuda_graphs:
        return f"{number} runs without CUDA graphs: sums over ranks are not recorded\nhint: leave out --cuda-graphs"
    return ""
