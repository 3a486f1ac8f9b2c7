"""Bad input through raw calls, past our client's own checks: the right code, the field's name, and no model work."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.rpc import error_details_pb2

from polyhead.v1 import generation_pb2, heads_pb2, scoring_pb2, trunk_pb2
from polyhead.v1.types_pb2 import Prompt, Sampling
from tests.e2e.bad_input import INVALID, TABLE, generate, ids, sampled, trunk
from tests.e2e.support import MODEL_WORK, assert_reveals_nothing, call, details_of, error_of, retry_infos, serving
from tests.e2e.tiny import CONTEXT

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (generation_pb2, "GenerationService"),
        (scoring_pb2, "ScoringService"),
        (trunk_pb2, "TrunkService"),
        (heads_pb2, "HeadService"),
    )
]
METHODS = {f"{service.name}/{method.name}": method for service in SERVICES for method in service.methods}


@pytest.fixture(scope="module")
def channel(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    with (
        serving(tiny_model, tmp_path_factory.mktemp("bad-input") / "store") as server,
        grpc.insecure_channel(server.address) as opened,
    ):
        yield opened


def model_work(channel: grpc.Channel) -> list[int]:
    """What the engine has done so far."""
    counters = trunk_pb2.GetStatusResponse.FromString(call(channel, "TrunkService/GetStatus", b"")[0]).counters
    return [counters[name] for name in MODEL_WORK]


def assert_status(error: Any, code: str, field: str) -> None:
    """The exact code, exactly one ErrorInfo, and the field at fault by name."""
    assert error.code().name == code, error.details()
    details = details_of(error)
    assert sum(isinstance(detail, error_details_pb2.ErrorInfo) for detail in details) == 1
    requests = [detail for detail in details if isinstance(detail, error_details_pb2.BadRequest)]
    fields = [violation.field for request in requests for violation in request.field_violations]
    assert bool(fields) == (code == INVALID)
    if field:
        escaped = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in field)
        assert fields == [escaped]


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused_before_any_model_work(channel: grpc.Channel, name: str) -> None:
    (method, message), code, field = TABLE[name]
    before = model_work(channel)
    error = error_of(lambda: call(channel, method, message))
    assert_status(error, code, field)
    assert_reveals_nothing(error, sent=message.SerializeToString())
    assert not retry_infos(error), "the same again would not be better"
    assert model_work(channel) == before


def test_prompt_and_reply_may_fill_the_context_exactly(channel: grpc.Channel) -> None:
    """One token more is refused and never cut off."""
    fits = generate(ids(*[5] * (CONTEXT - 3)), sampling=Sampling(max_new_tokens=3, ignore_eos=True))
    last = generation_pb2.GenerateResponse.FromString(call(channel, *fits)[-1])
    assert len(last.sample.token_ids) == 3
    before = model_work(channel)
    error = error_of(lambda: call(channel, *generate(ids(*[5] * (CONTEXT - 3)), sampling=Sampling(max_new_tokens=4))))
    assert_status(error, INVALID, "prompts[0]")
    assert model_work(channel) == before


def test_extreme_values_inside_their_ranges_are_taken_as_they_are(channel: grpc.Channel) -> None:
    given = Sampling(temperature=1e-9, top_p=1e-30, min_p=1, top_k=2**31 - 1, repetition_penalty=10, max_new_tokens=2, seed=2**64 - 1)
    last = generation_pb2.GenerateResponse.FromString(call(channel, *generate(sampling=given))[-1])
    for name in ("temperature", "top_p", "min_p", "top_k", "repetition_penalty", "max_new_tokens", "seed"):
        assert getattr(last.sample.sampling, name) == getattr(given, name), name


def test_fields_of_a_newer_client_are_passed_over(channel: grpc.Channel) -> None:
    method, message = sampled(max_new_tokens=1, seed=7)  # without a seed, a half character may take one message more
    unknown = b"\xfa\xff\x03\x03new"  # field 8191, three bytes
    assert len(call(channel, method, message.SerializeToString() + unknown)) == len(call(channel, method, message))


@pytest.mark.parametrize("text", ["a\0b", "\u202eabc", "\ufeffx", "e\u0301" * 50, "👩\u200d👩\u200d👧"])
def test_any_valid_unicode_comes_back_as_it_went(channel: grpc.Channel, text: str) -> None:
    answer = call(channel, *trunk("Tokenize", prompt=Prompt(text=text), without_special_tokens=True))[0]
    token_ids = trunk_pb2.TokenizeResponse.FromString(answer).token_ids
    answer = call(channel, *trunk("Detokenize", token_ids=token_ids))[0]
    assert trunk_pb2.DetokenizeResponse.FromString(answer).text == text


@pytest.mark.parametrize("name", METHODS)
def test_malformed_bodies_are_invalid_arguments(channel: grpc.Channel, name: str) -> None:
    """gRPC's own answer to bytes that do not parse is UNKNOWN with the parser's text."""
    before = model_work(channel)
    for body in _unparsable(METHODS[name], num_random=20):
        error = error_of(lambda body=body: call(channel, name, body))
        assert_status(error, INVALID, "")
        assert_reveals_nothing(error)
    assert model_work(channel) == before


def _unparsable(method: MethodDescriptor, num_random: int) -> Iterator[bytes]:
    """Bodies that are no message of the method's type: a torn tag, a string that is not UTF-8, random bytes."""
    message_class = message_factory.GetMessageClass(method.input_type)
    generator = random.Random(method.full_name)
    yield b"\xff" * 11
    yield from filter(None, [_bad_utf8(method.input_type, 4)])
    while num_random:
        body = generator.randbytes(generator.randint(1, 200))
        try:
            message_class.FromString(body)
        except Exception:
            num_random -= 1
            yield body


def _bad_utf8(message: Descriptor, most_deep: int) -> bytes:
    """A message with a bad string somewhere inside; empty if it has none."""
    for field in message.fields:
        inside = b"\xc3\x28" if field.type == field.TYPE_STRING else b""
        if field.type == field.TYPE_MESSAGE and most_deep:
            inside = _bad_utf8(field.message_type, most_deep - 1)
        if inside:
            tag = field.number << 3 | 2
            assert tag < 128
            assert len(inside) < 128
            return bytes([tag, len(inside)]) + inside
    return b""
