"""The records through which Python tells the compiled code what to do: addresses and sizes, no more. Strides and sizes in numbers."""

from __future__ import annotations

import numpy as np

# What a job asks for.
LAYERS, PRODUCT, SHARED_PRODUCT, NORM, ATTEND, GATE, LOGITS, PACK = range(8)

# What becomes of a product's rows: written; added to what stands there; silu(first half of a panel) * second half; written panel by panel.
STORE, ADD, GATED, PANELS = range(4)

SCRATCH_BYTES = 1 << 18  # of each thread: tiles, and attention's sums

MATRIX = np.dtype(
    [
        ("weight", np.int64),  # address, packed (packing.py)
        ("scales", np.int64),  # address, float32 (panels * PANEL,): of int8; else 0
        ("bias", np.int64),  # address, float32 (panels * PANEL,); or 0
        ("num_in", np.int64),
        ("num_out", np.int64),
    ]
)

QKV, OUT, GATE_UP, DOWN = range(4)  # a layer's matrices, in this order

LAYER = np.dtype(
    [
        ("index", np.int64),  # in the trunk's or the head's cache
        ("norm", np.int64),  # addresses, float32 (d_model,)
        ("mlp_norm", np.int64),
        ("query_norm", np.int64),  # addresses, float32 (head_dim,); or 0
        ("key_norm", np.int64),
        ("window", np.int64),  # tokens that a token sees, itself included; 0: all
        ("scale", np.float64),  # of attention
        ("eps", np.float64),
    ]
)

# A run of one sequence's tokens: its first row of the batch, how many, the first one's position, and where its row of slots begins.
SEGMENT = np.dtype([("row", np.int64), ("num_rows", np.int64), ("start", np.int64), ("slots", np.int64)])

# A row of logits, what is asked of it, and the answers.
LOGITS_ROW = np.dtype(
    [
        ("logits", np.int64),  # address, float32 (vocab,)
        ("shaped", np.int64),  # address of what temperature and filters are for: the same, or penalised
        ("is_plain", np.int64),  # whether these leave it as it is
        ("temperature", np.float64),  # 0: greedy
        ("top_k", np.int64),  # 0: all
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("number", np.float64),  # in [0, 1)
        ("token_id", np.int64),  # the one that is asked about; below 0: as the number draws it
        ("logprob", np.float32),  # raw, of the token
        ("sampling_logprob", np.float32),  # shaped
        ("largest", np.float32),  # raw logit
        ("log_sum", np.float32),  # of exp(logit - largest); NaN if a logit is NaN or +inf, and then there is no token
    ]
)

JOB = np.dtype(
    [
        ("kind", np.int64),
        ("num_threads", np.int64),  # of the region: its threads write it
        ("scratch", np.int64),  # address: of SCRATCH_BYTES for each thread
        ("rows", np.int64),  # address: prepared rows of a product, as wide as the widest; or each thread's room for packing
        ("row_scales", np.int64),  # float32 (T,); or (panels * PANEL,) of a weight in int8
        ("row_sums", np.int64),  # int32 (T,)
        # rows in and out
        ("num_rows", np.int64),
        ("x", np.int64),  # float32 (T, d_model): the residual stream, in place; or a product's input; a weight; or LOGITS_ROW records
        ("out", np.int64),  # a product's output; a weight's panels; or each thread's room for a row of logits
        ("mode", np.int64),  # STORE, ADD, GATED or PANELS
        ("stripe", np.int64),  # rows of a weight that stand side by side in a panel
        ("norm", np.int64),  # of a product's input; or 0
        ("eps", np.float64),
        ("width", np.int64),  # numbers in a row of x
        # a stack of layers
        ("layers", np.int64),  # address of LAYER records
        ("matrices", np.int64),  # address of MATRIX records, four a layer; or of a product's
        ("num_layers", np.int64),
        ("num_heads", np.int64),
        ("num_kv_heads", np.int64),
        ("head_dim", np.int64),
        ("inner_width", np.int64),
        ("qkv", np.int64),  # float32 (T, (heads + 2 kv_heads) * head_dim)
        ("attended", np.int64),  # float32 (T, heads * head_dim)
        ("inner", np.int64),  # float32 (T, inner_width)
        ("tap_layer", np.int64),  # what enters it is kept; 0: nothing
        ("taps", np.int64),  # address of all that is kept, float32 (cache rows, d_model)
        ("tap_rows", np.int64),  # int64 (T,): where in it
        # attention
        ("rotations", np.int64),  # float32 (positions, 2, head_dim): what a number of a pair is multiplied by, and its other one
        ("positions", np.int64),  # int64 (T,)
        ("cache", np.int64),  # address of each cache layer's address
        ("block_size", np.int64),
        ("number_bytes", np.int64),  # of a key's or a value's number in the cache: 4, or 2 of float16
        ("num_new", np.int64),
        ("write_rows", np.int64),  # int64 (new,): rows of the cache
        ("new_rows", np.int64),  # int64 (new,): rows of the batch; 0: all, in order
        ("num_segments", np.int64),
        ("segments", np.int64),  # address of SEGMENT records
        ("slots", np.int64),  # int64: the segments' slots, one after the other
        # rows that are asked of the last layer, if not all
        ("num_asked", np.int64),  # -1: all
        ("asked_rows", np.int64),  # int64 (asked,), ascending
        ("num_asked_segments", np.int64),
        ("asked_segments", np.int64),
        ("asked_slots", np.int64),
    ]
)
