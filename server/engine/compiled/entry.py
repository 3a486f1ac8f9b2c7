"""The one function that is called, by every thread of a region: a whole stack of layers, or one part of it."""

# mypy: ignore-errors

from __future__ import annotations

from numba import carray, cfunc, njit, types

from polyhead.server.engine.compiled.attention import attend
from polyhead.server.engine.compiled.jobs import (
    ADD,
    ATTEND,
    DOWN,
    GATE,
    GATE_UP,
    GATED,
    JOB,
    LAYER,
    LAYERS,
    LOGITS,
    MATRIX,
    NORM,
    OUT,
    PACK,
    PRODUCT,
    QKV,
    SCRATCH_BYTES,
    SHARED_PRODUCT,
    STORE,
)
from polyhead.server.engine.compiled.logits import read_rows
from polyhead.server.engine.compiled.machine import barrier, memory, team_size, thread_number
from polyhead.server.engine.compiled.packing import pack
from polyhead.server.engine.compiled.products import product, shared_product
from polyhead.server.engine.compiled.rows import gate, keep_asked, keep_tap, norm, place_keys


@njit
def run_layers(job, scratch, thread):
    """The residual stream x, in place, through the layers; at the end only the rows that are asked for, in front."""
    layers = carray(memory(job.layers), (job.num_layers,), LAYER)
    matrices = carray(memory(job.matrices), (4 * job.num_layers,), MATRIX)
    num_rows = job.num_rows
    num_segments, segments, slots = job.num_segments, job.segments, job.slots
    for number in range(job.num_layers):
        layer, first = layers[number], 4 * number
        if job.tap_layer and number == job.tap_layer:
            keep_tap(job, thread)
        product(job, matrices[first + QKV], num_rows, job.x, layer.norm, job.qkv, STORE, layer.eps, scratch, thread)
        place_keys(job, layer, thread)
        barrier()
        if number == job.num_layers - 1 and job.num_asked >= 0:
            if thread == 0:
                keep_asked(job)
            num_rows = job.num_asked
            num_segments, segments, slots = job.num_asked_segments, job.asked_segments, job.asked_slots
            barrier()
        attend(job, layer, num_segments, segments, slots, scratch, thread)
        barrier()
        product(job, matrices[first + OUT], num_rows, job.attended, 0, job.x, ADD, 0.0, scratch, thread)
        product(job, matrices[first + GATE_UP], num_rows, job.x, layer.mlp_norm, job.inner, GATED, layer.eps, scratch, thread)
        product(job, matrices[first + DOWN], num_rows, job.inner, 0, job.x, ADD, 0.0, scratch, thread)


@njit
def attend_once(job, scratch, thread):
    """One layer's keys are placed and its queries answered."""
    layer = carray(memory(job.layers), (1,), LAYER)[0]
    place_keys(job, layer, thread)
    barrier()
    attend(job, layer, job.num_segments, job.segments, job.slots, scratch, thread)


@njit
def norm_rows(job, thread):
    for row in range(job.num_rows * thread // job.num_threads, job.num_rows * (thread + 1) // job.num_threads):
        norm(job.x + row * job.width * 4, job.norm, job.out + row * job.width * 4, job.width, job.eps)


def compiled_entry(fingerprint, is_kept):
    """Compiled, or, if it `is_kept`, read back from the disk where it was made from these sources.

    Numba keys what it keeps by the values that the function closes over: `fingerprint`, which is never 0, is used for that alone.
    """

    @cfunc(types.void(types.voidptr), cache=is_kept)
    def entry(address):
        job = carray(address, (1,), JOB)[0]
        thread = thread_number() if fingerprint else 0
        job.num_threads = team_size()  # it may be smaller than was asked for: OMP_THREAD_LIMIT, OMP_DYNAMIC
        scratch = job.scratch + thread * SCRATCH_BYTES
        if job.kind == LAYERS:
            run_layers(job, scratch, thread)
        elif job.kind == PRODUCT:
            matrix = carray(memory(job.matrices), (1,), MATRIX)[0]
            product(job, matrix, job.num_rows, job.x, job.norm, job.out, job.mode, job.eps, scratch, thread)
        elif job.kind == SHARED_PRODUCT:
            shared_product(job, carray(memory(job.matrices), (1,), MATRIX)[0], thread, scratch)
        elif job.kind == NORM:
            norm_rows(job, thread)
        elif job.kind == ATTEND:
            attend_once(job, scratch, thread)
        elif job.kind == GATE:
            gate(job, thread)
        elif job.kind == LOGITS:
            read_rows(job, thread)
        elif job.kind == PACK:
            pack(job, thread)

    return entry
