"""Facts that stand in the contract, in the client and in one table of heads/format: they are the same."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest

from polyhead.client.results import results
from polyhead.client.wire.options import CopyOptions, PushOptions
from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import KINDS, HeadKind, OutputKind, model_output, takes_output
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.wire_enums import WireEnum, wire_numbers
from polyhead.server.engine.work.request import Priority
from polyhead.server.rpc.messages import enums, generation_requests
from polyhead.server.versions.manifests import ManifestPatch
from polyhead.v1 import generation_pb2, heads_pb2, types_pb2

MAPS = {name: each for name, each in vars(enums).items() if isinstance(each, WireEnum)}


def test_the_table_of_kinds_is_whole() -> None:
    """Contract, client and table know the same kinds, and a score message each."""
    values = {kind.value for kind in KINDS}
    assert values == {kind.value for kind in HeadKind} == set(wire_numbers(types_pb2.HeadKind))
    assert values == {kind.value for kind in results.HeadKind if kind}
    answers = types_pb2.HeadScore.DESCRIPTOR.oneofs_by_name["result"].fields
    assert {facts.score for facts in KINDS.values()} == {field.name for field in answers}
    for kind in HeadKind:
        assert results.HeadKind(kind.value).has_logits == kind.has_logits
        assert takes_output(kind, model_output(kind, tied=True))
        assert takes_output(kind, OutputKind.SCORE) != kind.has_logits


def test_what_a_trainer_may_set_can_be_set_everywhere() -> None:
    fields = {name for facts in KINDS.values() for name in facts.manifest_fields}
    assert fields <= {field.name for field in dataclasses.fields(HeadManifest)}
    assert fields <= {field.name for field in dataclasses.fields(ManifestPatch)}
    assert fields <= set(PushOptions.__annotations__)
    assert fields <= set(heads_pb2.HeadManifest.DESCRIPTOR.fields_by_name)
    assert set(KINDS[HeadKind.PREFERENCE].manifest_fields) <= set(CopyOptions.__annotations__)


@pytest.mark.parametrize("name", MAPS)
def test_every_member_goes_there_and_back(name: str) -> None:
    each = MAPS[name]
    for member, number in each._numbers.items():
        assert each.number(member) == number
        assert each.member(number, "f") is member
        assert all(each.member_or(number, "f", default) is member for default in each._numbers)
    with pytest.raises(InvalidArgument, match="unknown x: 99") as caught:
        each.member(99, "a.x")
    assert caught.value.field == "a.x"


def test_an_interactive_caller_is_one() -> None:
    """Priority.INTERACTIVE is 0, so false: `member(...) or Priority.BATCH` put people into the queue of the batch work."""
    for name, number in (("BATCH", 0), ("BATCH", types_pb2.PRIORITY_BATCH), ("INTERACTIVE", types_pb2.PRIORITY_INTERACTIVE)):
        message = generation_pb2.GenerateRequest(priority=number, prompts=[types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[5]))])
        context = mock.Mock(max_context=1000, default_priority=Priority.BATCH)
        assert generation_requests.count_generation(message, context).priority.name == name


def test_nothing_of_the_contract_is_forgotten() -> None:
    """A number that the contract has and we lack would be refused as unknown."""
    for each, contract in ((enums.HEAD_KINDS, types_pb2.HeadKind), (enums.FINISH_REASONS, types_pb2.FinishReason)):
        assert set(each._members) - {0} == set(wire_numbers(contract).values())
