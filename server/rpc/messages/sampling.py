"""Sampling parameters, from protobuf to the engine's dataclass: checked, defaults filled in, nothing altered silently."""

from __future__ import annotations

import math
import random

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.rpc.messages.prompts import checked_ids
from polyhead.server.rpc.request_context import RequestContext
from polyhead.v1 import types_pb2

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_IDS = 64
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 10.0
MAX_TEMPERATURE = 100.0
_seeds = random.Random()  # no secret: answers state the seed, and the system's random source costs a system call each


def sampling_params(message: types_pb2.Sampling, field: str, context: RequestContext) -> SamplingParams:
    """Sampling parameters with every default filled in; the seed is drawn here if none is given."""
    defaults = SamplingParams()
    params = SamplingParams(
        temperature=_number(message, "temperature", defaults.temperature, 0.0, MAX_TEMPERATURE, field),
        top_p=_number(message, "top_p", defaults.top_p, 0.0, 1.0, field, above=True),
        top_k=message.top_k if message.HasField("top_k") else defaults.top_k,
        min_p=_number(message, "min_p", defaults.min_p, 0.0, 1.0, field),
        repetition_penalty=_number(
            message, "repetition_penalty", defaults.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY, field
        ),
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else defaults.max_new_tokens,
        stop=tuple(message.stop),
        keep_stop=message.keep_stop,
        stop_token_ids=frozenset([*message.stop_token_ids, *_control_ids(message, context)]),
        ignore_eos=message.ignore_eos,
        seed=message.seed if message.HasField("seed") else _seeds.getrandbits(64),
    )
    if params.top_k >= 1 << 31:
        raise InvalidArgument(f"top_k is out of range: {params.top_k}", field=f"{field}.top_k")
    if not 1 <= params.max_new_tokens <= context.max_context:
        raise InvalidArgument(
            f"max_new_tokens must lie between 1 and {context.max_context}: {params.max_new_tokens}", field=f"{field}.max_new_tokens"
        )
    _check_stops(message, context, field)
    return params


def _number(
    message: types_pb2.Sampling, name: str, default: float, low: float, high: float, field: str, above: bool = False
) -> float:
    """A float field within [low, high], or (low, high] if `above`. NaN is outside of everything."""
    if not message.HasField(name):
        return default
    value = float(getattr(message, name))
    if not math.isfinite(value) or value < low or value > high or (above and value == low):
        bracket = "(" if above else "["
        raise InvalidArgument(f"{name} must lie in {bracket}{low:g}, {high:g}]: {value}", field=f"{field}.{name}")
    return value


def _control_ids(message: types_pb2.Sampling, context: RequestContext) -> list[int]:
    """Stop strings that are control tokens, as ids: control tokens are left out of the text that strings are looked for in."""
    found = (context.tokenizer.stop_id(stop) for stop in message.stop)
    return [token for token in found if token is not None and token < context.vocab_size]


def _check_stops(message: types_pb2.Sampling, context: RequestContext, field: str) -> None:
    if len(message.stop) > MAX_STOPS:
        raise InvalidArgument(f"too many stop strings: {len(message.stop)}, at most {MAX_STOPS}", field=f"{field}.stop")
    for index, stop in enumerate(message.stop):
        if not stop or len(stop.encode()) > MAX_STOP_BYTES:
            raise InvalidArgument(f"a stop string must have 1 to {MAX_STOP_BYTES} bytes", field=f"{field}.stop[{index}]")
        if context.tokenizer.stop_id(stop) is None and (hidden := context.tokenizer.control_token_in(stop)):
            raise InvalidArgument(
                f"no text holds a control token, so this stop string would never match: {stop!r}\nhint: give {hidden!r} by itself",
                field=f"{field}.stop[{index}]",
            )
    if len(message.stop_token_ids) > MAX_STOP_IDS:
        raise InvalidArgument(f"too many stop ids: {len(message.stop_token_ids)}, at most {MAX_STOP_IDS}", field=f"{field}.stop_token_ids")
    if message.stop_token_ids:
        checked_ids(message.stop_token_ids, context.vocab_size, f"{field}.stop_token_ids")
