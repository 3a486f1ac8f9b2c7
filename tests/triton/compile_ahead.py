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

from polyhead.server.engine.layers.cuda import fused_kernels
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


# of a layer of 4096 and 14336 numbers in bfloat16: what is a pointer, and constants
FUSED: list[tuple[str, dict[str, str], dict[str, object]]] = [
    ("silu_up_kernel", {"both": "*bf16", "out": "*bf16"}, {"BLOCK": 1024}),
    (
        "add_norm_kernel",
        {"x": "*bf16", "added": "*bf16", "weight": "*bf16", "out": "*bf16", "eps": "fp32"},
        {"BLOCK": 4096, "HAS_ADDED": True},
    ),
    (
        "turn_kernel",
        {
            **dict.fromkeys(("qkv", "cache", "query_weight", "key_weight"), "*bf16"),
            "rotations": "*fp32",
            "write_rows": "*i64",
            "query_eps": "fp32",
            "key_eps": "fp32",
        },
        {"HEAD_DIM": 128, "HALF": 64, "HAS_NORMS": True},
    ),
    (
        "quantize_kernel",
        {"rows": "*bf16", "out": "*i8", "scales": "*fp32", "matrix": "*bf16", "largest": "fp32"},
        {"GROUPS": 256, "IS_SPREAD": True, "IS_INTEGER": True},
    ),
    (
        "quantize_kernel",
        {"rows": "*bf16", "out": "*u8", "scales": "*fp32", "matrix": "*bf16", "largest": "fp32"},
        {"GROUPS": 256, "IS_SPREAD": False, "IS_INTEGER": False},
    ),
    (
        "descale_kernel",
        {"sums": "*i32", "row_scales": "*fp32", "column_scales": "*fp32", "bias": "*bf16", "added": "*bf16", "out": "*bf16"},
        {"BLOCK": 1024, "HAS_BIAS": True, "HAS_ADDED": True, "IS_GATED": True},
    ),
]


def compiled_fused(name: str, given: dict[str, str], constants: dict[str, object], capability: int) -> dict[str, object]:
    kernel = getattr(fused_kernels, name)
    signature = {each: "constexpr" if each in constants else given.get(each, "i32") for each in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(each),): value for each, value in constants.items()}, {})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    return {"bytes": len(made.asm["cubin"]), "shared": made.metadata.shared, "tensor_cores": "mma" in made.asm["ptx"]}


def main(capabilities: list[int]) -> None:
    warnings.simplefilter("ignore")
    for capability in capabilities:
        for name, given, options in FUSED:
            if capability < 89 and options.get("IS_INTEGER") is False:
                continue  # no fp8
            made = compiled_fused(name, given, options, capability)
            print(json.dumps({"capability": capability, "kernel": name.removesuffix("_kernel"), **made}), flush=True)
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
