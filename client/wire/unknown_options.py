"""An option that a call does not have: an error that says which one is meant, by the names of other libraries, too."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["refuse_unknown"]

_MEANT = {
    **dict.fromkeys(("max_tokens", "max_length", "max_completion_tokens", "max_new_token", "num_predict"), "max_new_tokens"),
    **dict.fromkeys(("num_return_sequences", "num_samples", "num_generations", "best_of"), "n"),
    **dict.fromkeys(("stop_strings", "stop_sequences", "stop_words"), "stop"),
    **dict.fromkeys(("eos_token_id", "stop_ids"), "stop_token_ids"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), "repetition_penalty"),
    **dict.fromkeys(("model", "lora_request", "adapter"), "head"),
    "include_stop_str_in_output": "keep_stop",
    "reward": "recipe",
    "scores": "score",
    "score": "heads",
    "rule": "rules",
    "label": "labels",
    "metric": "metrics",
    "deadline": "timeout",
}  # vLLM's, transformers', TGI's, OpenAI's
_HINTS = {
    "logprobs": "log-probs of the drawn tokens always come: sample.logprobs; other likely tokens with score=[...] and top_logprobs=",
    "prompt_logprobs": "score() says the log-probs of given text",
    "do_sample": "temperature=0 is greedy, anything above draws",
    "num_beams": "there is no beam search",
    "messages": 'a conversation is a prompt: [{"role": "user", "content": "Hi"}]',
    "system": 'it is the first message of a conversation: {"role": "system", "content": ...}',
    "system_prompt": 'it is the first message of a conversation: {"role": "system", "content": ...}',
    "stream": "stream() gives the pieces of one sample as they are drawn",
    "n": "it draws one sample: generate() and samples() draw several",
    "arms": "it draws one sample: generate() and samples() draw from several heads",
    "activate": "update() pushes and activates as one change",
}


def refuse_unknown(options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """TypeError for the first option that is none of `known`. `where` is the call, "generate()", or "arms[0]"."""
    names = sorted(known)
    for name in options:
        if name not in names:
            said = f"{where} got an unexpected keyword argument: {name!r}"
            raise TypeError(f"{said}\nhint: {hint}" if (hint := _hint(name, names)) else said)


def _hint(name: str, known: list[str]) -> str:
    meant = _MEANT.get(name)
    if meant in known:
        return f"did you mean {meant}=?"
    if name in _HINTS:
        return _HINTS[name]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}=?" if near else ""
