"""llama.cpp through llama-cpp-python's low-level interface: all streams in one llama_batch a step, as its own batched-bench does."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np

BATCH_TOKENS = 2048  # of one llama_decode call at most
FILE_TYPES = {"F32": llama.LLAMA_FTYPE_ALL_F32, "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0}


class LlamaCpp:
    """One model file in one precision; a context for each number of streams, made when first asked for."""

    def __init__(self, file: str, num_threads: int, precision: str) -> None:
        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = "amx_int8" not in Path("/proc/cpuinfo").read_text()  # 0.3.36 dies of Q8_0 in AMX's layout
        self.model = llama.llama_model_load_from_file(file.encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {Path(file).name}")
        self.num_threads = num_threads
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.contexts: dict[tuple[int, int], Any] = {}
        self.batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.about = {"engine": "llama.cpp", "version": llama.__version__, "precision": precision}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        prompts, num_tokens = question["prompts"], question["num_tokens"]
        context = self._context(len(prompts), max(map(len, prompts)) + num_tokens)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        started_at = time.perf_counter()
        completions = self._decode(context, prompts, num_tokens)
        return {"seconds": time.perf_counter() - started_at, "completions": completions}

    def _context(self, num_streams: int, length: int) -> Any:
        length = -(-length // 256) * 256
        if (num_streams, length) not in self.contexts:
            parameters = llama.llama_context_default_params()
            parameters.n_ctx, parameters.n_seq_max = num_streams * length, num_streams
            parameters.n_batch = BATCH_TOKENS
            parameters.n_threads = parameters.n_threads_batch = self.num_threads
            parameters.kv_unified = False
            context = llama.llama_init_from_model(self.model, parameters)
            if not context:
                raise RuntimeError(f"llama.cpp has no context for {num_streams} streams")
            self.contexts[num_streams, length] = context
        return self.contexts[num_streams, length]

    def _decode(self, context: Any, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """The likeliest token of every stream, step by step; the prompts are the first step."""
        completions: list[list[int]] = [[] for _ in prompts]
        entries = [
            (token, position, stream, position == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for step in range(num_tokens):
            for stream, token in self._run(context, entries):
                completions[stream].append(token)
            entries = [(tokens[-1], len(prompts[stream]) + step, stream, True) for stream, tokens in enumerate(completions)]
        return completions

    def _run(self, context: Any, entries: list[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """(stream, likeliest next token) for every entry whose output is wanted."""
        drawn = []
        for start in range(0, len(entries), BATCH_TOKENS):
            part = entries[start : start + BATCH_TOKENS]
            batch = self.batch
            batch.n_tokens = len(part)
            for index, (token, position, stream, is_wanted) in enumerate(part):
                batch.token[index], batch.pos[index], batch.logits[index] = token, position, is_wanted
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, stream
            if status := llama.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode ended with {status}")
            for index, (_, _, stream, is_wanted) in enumerate(part):
                if is_wanted:
                    logits = llama.llama_get_logits_ith(context, index)
                    drawn.append((stream, int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())))
        return drawn


class Quantiser:
    """llama.cpp's own quantiser: writes the model once in each precision that is asked for."""

    def __init__(self) -> None:
        self.about = {"engine": "llama.cpp", "version": llama.__version__}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        out = Path(question["out"])
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype, parameters.allow_requantize = FILE_TYPES[question["precision"]], True
        parameters.nthread = question["num_threads"]
        partial = out.with_name(f"{out.name}.{os.getpid()}")
        status = llama.llama_model_quantize(question["source"].encode(), str(partial).encode(), ctypes.byref(parameters))
        if status:
            raise RuntimeError(f"llama_model_quantize ended with {status}")
        os.replace(partial, out)
        return {"file": str(out)}


def load(settings: dict[str, Any]) -> LlamaCpp | Quantiser:
    if "file" not in settings:
        return Quantiser()
    return LlamaCpp(settings["file"], settings["num_threads"], settings["precision"])
