"""From protobuf to dataclasses: dtypes, enums of a newer server, the public surface."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import descriptor

import polyhead.client
from polyhead.client import FinishReason, HeadKind, errors
from polyhead.client.results.results import Served
from polyhead.client.wire import convert
from polyhead.v1 import generation_pb2, heads_pb2, types_pb2
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


def test_no_field_of_a_sample_is_forgotten() -> None:
    fields: list[descriptor.FieldDescriptor] = list(generation_pb2.Sample.DESCRIPTOR.fields)
    known = set(polyhead.client.Sample.__dataclass_fields__)
    assert {field.name for field in fields} <= known


def test_surface() -> None:
    assert sorted(polyhead.client.__all__) == polyhead.client.__all__
    assert all(hasattr(polyhead.client, name) for name in polyhead.client.__all__)
