"""Compiles our kernels for the GPU generations that they are for, without a GPU: one line of JSON each. Run by test_compile.py.

usage: python -m tests.triton.compile_ahead 80 90 100
"""

from __future__ import annotations

import json
import sys
import warnings

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from polyhead.server.engine.layers.cuda.paged import MOST_SPLITS, Launch, power_of_two
from polyhead.server.engine.layers.cuda.paged_kernels import attend_kernel, merge_kernel

POINTERS = {"table": "*i32", "query_starts": "*i32", "num_keys": "*i32", "part_sums": "*fp32", "part_norms": "*fp32"}
FLOATS = ("scale", "softcap")
UNALIGNED = (*FLOATS, "table_row", "left", "num_splits")


def compiled(kernel: object, capability: int, dtype: str, constants: dict[str, object], warps: int, stages: int) -> dict[str, object]:
    """Sizes of the program, and whether tensor cores multiply in it."""
    names = kernel.arg_names  # type: ignore[attr-defined]
    types = {name: POINTERS.get(name, "fp32" if name in FLOATS else "i32") for name in names if name not in constants}
    types |= {name: f"*{dtype}" for name in ("queries", "keys", "values", "out") if name in types}
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in types if name not in UNALIGNED}  # as the launcher finds them
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages})
    text = made.asm["ptx"]
    return {"bytes": len(made.asm["cubin"]), "shared": made.metadata.shared, "tensor_cores": any(op in text for op in ("mma", "tcgen05"))}


def main(capabilities: list[int]) -> None:
    warnings.simplefilter("ignore")
    for capability in capabilities:
        for dtype, head_dim, group, most_queries in (("bf16", 128, 4, 1), ("bf16", 128, 4, 256), ("fp16", 256, 8, 300)):
            launch = Launch.of(1, most_queries, 4096, 8, group, head_dim, 132)
            constants = {
                "GROUP": group, "HEAD_DIM": head_dim, "DIM": power_of_two(head_dim), "BLOCK": 16, "TILE": launch.tile, "KEYS": launch.keys,
                "IS_SPLIT": launch.num_splits > 1,
            }  # fmt: skip
            made = compiled(attend_kernel, capability, dtype, constants, launch.num_warps, launch.num_stages)
            print(json.dumps({"capability": capability, "kernel": "attend", "tile": launch.tile, "head_dim": head_dim, **made}), flush=True)
        constants = {"HEAD_DIM": 128, "DIM": 128, "MOST_SPLITS": MOST_SPLITS}
        made = compiled(merge_kernel, capability, "bf16", constants, 4, 3)
        print(json.dumps({"capability": capability, "kernel": "merge", **made}), flush=True)


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]])
