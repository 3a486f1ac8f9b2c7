"""From protobuf to dataclasses: dtypes, enums of a newer server, the public surface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import polyhead.client
from polyhead.client import FinishReason, HeadKind, errors
from polyhead.client.results.records import LoraAdapter
from polyhead.client.results.results import Served, Span, WorkDone
from polyhead.client.wire import convert
from polyhead.v1 import generation_pb2, heads_pb2, scoring_pb2, trunk_pb2, types_pb2
from tests.client.fake_messages import make_sample


def test_bfloat16_is_widened_exactly() -> None:
    numbers = np.array([[1.5, -2.0], [np.inf, 2.0**-133]], np.float32)  # the last one is subnormal
    data = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    assert np.array_equal(convert.tensor(types_pb2.Tensor(dtype="bfloat16", shape=[2, 2], data=data)), numbers)
    half = types_pb2.Tensor(dtype="float16", shape=[1], data=np.array([0.5], "<f2").tobytes())
    assert convert.tensor(half).tolist() == [0.5]


@pytest.mark.parametrize(("dtype", "data"), [("int8", b"1234"), ("float32", b"123")])
def test_bytes_that_do_not_fit_are_data_loss(dtype: str, data: bytes) -> None:
    with pytest.raises(errors.DataLoss, match="do not fit"):
        convert.tensor(types_pb2.Tensor(dtype=dtype, shape=[1], data=data))


def test_every_enum_value_has_its_name() -> None:
    for number in types_pb2.FinishReason.values():
        message = make_sample(0, 0, 0)
        message.finish_reason = number
        name = types_pb2.FinishReason.Name(number).removeprefix("FINISH_REASON_").lower()
        assert convert.sample(message, "", Served()).finish_reason == (name if number else FinishReason.UNSPECIFIED)
    for number in types_pb2.HeadKind.values()[1:]:
        manifest = heads_pb2.HeadManifest(kind=number)
        assert convert.head_version(heads_pb2.HeadVersion(manifest=manifest)).kind is not HeadKind.UNSPECIFIED


def test_number_of_a_newer_server_is_unspecified() -> None:
    message = make_sample(0, 0, 0)
    message.finish_reason = 99  # type: ignore[assignment]
    assert convert.sample(message, "", Served()).finish_reason is FinishReason.UNSPECIFIED


def filled(kind: type[Message]) -> Any:
    """A message with every field set, to something other than its default. Of a oneof the last one stays."""
    message = kind()
    for number, field in enumerate(kind.DESCRIPTOR.fields, start=1):
        value, inner = getattr(message, field.name), field.message_type
        scalar = "text" if field.cpp_type == field.CPPTYPE_STRING and field.type == field.TYPE_STRING else number
        if inner is not None and inner.GetOptions().map_entry:
            value["key"] = number
        elif inner is not None:
            (value.add() if field.is_repeated else value).CopyFrom(filled(GetMessageClass(inner)))
        elif field.is_repeated:
            value.append(scalar)
        else:
            setattr(message, field.name, b"bytes" if field.type == field.TYPE_BYTES else 1 if field.enum_type else scalar)
    return message


@pytest.mark.parametrize(
    ("convert_one", "kind", "left_out"),
    [
        (lambda message: convert.sample(message, "id", Served()), generation_pb2.Sample, set()),
        (lambda message: convert.scored_item(message, "id", Served()), scoring_pb2.ScoredItem, set()),
        (convert.piece, generation_pb2.Piece, set()),
        (convert.served, types_pb2.Served, set()),
        (convert.head_version, heads_pb2.HeadVersion, set()),
        (lambda message: convert.head_version(heads_pb2.HeadVersion(manifest=message)).manifest, heads_pb2.HeadManifest, set()),
        (convert.generation, heads_pb2.Generation, set()),
        (convert.activated, heads_pb2.ActivateHeadsResponse, {"generation"}),
        (convert.trunk_info, trunk_pb2.GetTrunkResponse, set()),
        (convert.status, trunk_pb2.GetStatusResponse, set()),
        (convert.ood_fit, trunk_pb2.OodFit, set()),
        (convert.configuration, scoring_pb2.Configuration, set()),
        (convert.rule_questions, scoring_pb2.TokenizeRulesResponse, {"questions"}),
    ],
)
def test_no_field_is_forgotten(convert_one: Callable[[Any], Any], kind: type[Message], left_out: set[str]) -> None:
    """What the server fills in arrives: a field of the contract that a dataclass lacks, or misnames, is found here."""
    names = {field.name for field in kind.DESCRIPTOR.fields} - left_out
    made, empty = convert_one(filled(kind)), convert_one(kind())
    assert names <= set(type(made).__dataclass_fields__)
    unread = {name for name in names if str(getattr(made, name)) == str(getattr(empty, name))}
    assert unread <= {"append_token_id", "violated_token_id", "followed_token_id"}  # of a policy head read at the last token: -1


def test_values_have_the_types_that_the_dataclasses_declare() -> None:
    sample = convert.sample(filled(generation_pb2.Sample), "id", Served())
    assert (sample.token_ids, sample.invalid_reasons, sample.finish_reason) == ([5], ("text",), FinishReason.EOS)
    assert sample.logprobs.dtype == np.float32
    assert sample.spans == (Span(1, 2, 3, 4, "text"),)
    assert sample.work == WorkDone(1, 2, 3.0)
    assert convert.sample(generation_pb2.Sample(), "id", Served()).work is None
    manifest = convert.head_version(filled(heads_pb2.HeadVersion)).manifest
    assert manifest.lora == LoraAdapter(rank=1, alpha=2.0, use_rslora=True, rank_pattern={"key": 4}, alpha_pattern={"key": 5.0})
    assert (manifest.output, manifest.read, manifest.unfinished) == ("tied", "last", "read_last")


def test_surface() -> None:
    assert sorted(polyhead.client.__all__) == polyhead.client.__all__
    assert all(hasattr(polyhead.client, name) for name in polyhead.client.__all__)
