"""OpenVINO GenAI's continuous batching over a GGUF file. Prompts go in as ids; the tokenizer is made from the same file and not used."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

MAX_STREAMS = 256


class OpenVino:
    """One pipeline for all numbers of streams."""

    def __init__(self, file: str, num_threads: int, precision: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.max_num_seqs = MAX_STREAMS
        scheduler.max_num_batched_tokens = 4096
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": num_threads}
        self.pipeline = genai.ContinuousBatchingPipeline(file, scheduler, "CPU", properties)
        self.about = {"engine": "OpenVINO GenAI", "version": genai.__version__.split("-")[0], "precision": precision}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        options = genai.GenerationConfig()
        options.max_new_tokens = options.min_new_tokens = question["num_tokens"]
        options.ignore_eos, options.do_sample = True, False
        prompts = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in question["prompts"]]
        started_at = time.perf_counter()
        results = self.pipeline.generate(prompts, [options] * len(prompts))
        seconds = time.perf_counter() - started_at
        return {"seconds": seconds, "completions": [list(result.m_generation_ids[0]) for result in results]}


def load(settings: dict[str, Any]) -> OpenVino:
    return OpenVino(settings["file"], settings["num_threads"], settings["precision"])
