"""A request id stands for one request: principal, method and every field. Fields come from the descriptors, so none can be forgotten."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from polyhead.heads.format.errors import AlreadyExists, NotFound
from polyhead.heads.store.store import HeadStore
from polyhead.server.ood.fits import OodFits, TrunkLayers
from polyhead.server.ood.scores import OodModel
from polyhead.server.ood.store import OodFit, OodStore
from polyhead.server.rpc.auth import Authenticator, Caller, Role, Token
from polyhead.server.rpc.interceptors import Call, current_call
from polyhead.server.rpc.messages import ood
from polyhead.server.rpc.services.ood import OodFitting
from polyhead.server.versions.head_loader import to_file
from polyhead.server.versions.request_digest import LEFT_OUT, request_digest
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import heads_pb2_grpc, trunk_pb2, types_pb2
from tests.server.fakes import World, heads_server
from tests.server.rpc.services.calls import refused

ID = "request_id"
READ_ONLY = {"PullHead", "GetHead", "ListHeadTensors", "ListHeads", "ListGenerations", "WatchHeads"}
WITHOUT_AN_ID = {"DeleteHead"}  # names one version, whose number is never used again: see `test_a_repeated_deletion`
TOKENS = {name: name * 32 for name in ("a", "b")}
Send = Callable[[Message], Awaitable[Any]]


def carriers() -> dict[str, Descriptor]:
    """Mutating method -> the message that carries its request id: the request, or the header of a stream."""
    found = {}
    for method in pb.DESCRIPTOR.services_by_name["HeadService"].methods:
        header = method.input_type.fields_by_name.get("header")
        carrier = method.input_type if header is None else header.message_type
        if ID in carrier.fields_by_name:
            found[method.name] = carrier
    return found


def test_every_method_is_known_to_change_something_or_not() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["HeadService"].methods}
    assert methods == carriers().keys() | READ_ONLY | WITHOUT_AN_ID


def first_requests(world: World) -> dict[str, Message]:
    """One request of each mutating method that works in a new world, in this order."""
    data = to_file(world.changed(1))
    sha256 = hashlib.sha256(data).hexdigest()
    manifest = pb.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
    return {
        "PushHead": pb.PushHeader(name="policy", num_bytes=len(data), sha256=sha256, manifest=manifest, request_id="PushHead"),
        "CopyHead": pb.CopyHeadRequest(source="preference@1", target="other", request_id="CopyHead"),
        "LabelHead": pb.LabelHeadRequest(head="policy@1", add=["best"], request_id="LabelHead"),
        "ActivateHeads": pb.ActivateHeadsRequest(heads={"policy": 2}, request_id="ActivateHeads"),
        "RollbackHeads": pb.RollbackHeadsRequest(to_generation=1, request_id="RollbackHeads"),
    }


def variants(message: Message) -> Iterator[tuple[str, Message]]:
    """(path, copy with another value there) for every field of the message and of the messages in it, its request id left out."""
    for field in message.DESCRIPTOR.fields:
        if field.name in LEFT_OUT:
            continue
        if field.message_type is not None and not field.is_repeated:
            for path, changed in variants(getattr(message, field.name)):
                yield f"{field.name}.{path}", with_value(message, field, changed)
        else:
            yield field.name, with_value(message, field, None)


def with_value(message: Message, field: FieldDescriptor, changed: Message | None) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    value = getattr(copy, field.name)
    if changed is not None:
        value.CopyFrom(changed)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        value["new"] = other(field.message_type.fields_by_name["value"], None)
    elif field.is_repeated:
        value.append(other(field, None))
    else:
        setattr(copy, field.name, other(field, value))
    return copy


def other(field: FieldDescriptor, value: Any) -> Any:
    """Another value than `value`."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return (value or "") + "x"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    return (value or 0) + 1


def senders(stub: heads_pb2_grpc.HeadServiceStub, world: World, token: str) -> dict[str, Send]:
    metadata = (("authorization", f"Bearer {TOKENS[token]}"),)

    def push(header: Message) -> Awaitable[Any]:
        chunk = pb.Chunk(data=to_file(world.changed(1)))
        return stub.PushHead(iter([pb.PushHeadRequest(header=header), pb.PushHeadRequest(chunk=chunk)]), metadata=metadata)  # type: ignore[arg-type, return-value]

    plain = {name: getattr(stub, name) for name in carriers() if name != "PushHead"}
    return {"PushHead": push, **{name: lambda request, call=call: call(request, metadata=metadata) for name, call in plain.items()}}


async def is_taken(call: Awaitable[Any]) -> bool:
    """Whether the call is refused because its id stands for another request."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.ALREADY_EXISTS
    return False


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator(tuple(Token.of(Role.TRAINER, token, principal=name) for name, token in TOKENS.items()))


async def test_each_field_of_each_mutating_request(world: World, authenticator: Authenticator) -> None:
    """A rollback under an activation's id was answered with the activation, and the bad policy stayed live."""
    world.registry.bootstrap(world.policy)
    async with heads_server(world, authenticator=authenticator) as (stub, _):
        send, send_b = senders(stub, world, "a"), senders(stub, world, "b")
        requests = first_requests(world)
        answers = {name: await send[name](request) for name, request in requests.items()}
        assert requests.keys() == carriers().keys()
        paths = {name: [path for path, _ in variants(request)] for name, request in requests.items()}
        wrong = []
        for name, request in requests.items():
            wrong += [f"{name}.{path}" for path, changed in variants(request) if not await is_taken(send[name](changed))]
            if not await is_taken(send_b[name](request)):
                wrong.append(f"{name} of another principal")
            for method, theirs in requests.items():
                borrowed = type(theirs)()
                borrowed.CopyFrom(theirs)
                borrowed.request_id = name  # type: ignore[attr-defined]
                if method != name and not await is_taken(send[method](borrowed)):
                    wrong.append(f"{method} with the id of {name}")
        assert wrong == []
        assert {"manifest.lora.alpha", "delta_sha256", "metrics", "labels"} <= set(paths["PushHead"])
        for name, request in requests.items():
            again = await send[name](request)
            made = "head" if "head" in again.DESCRIPTOR.fields_by_name else "generation"
            assert identity(getattr(again, made)) == identity(getattr(answers[name], made)), f"{name} has another answer the second time"
        assert world.store.current is not None
        assert world.store.current.number == 3, "nothing but the first requests did anything"


def identity(made: Any) -> tuple[Any, ...]:
    return (made.number,) if isinstance(made, pb.Generation) else (made.name, made.version, list(made.labels))


async def test_a_repeated_deletion(world: World) -> None:
    """It has no request id: it finds nothing, also when its name has a newer version and after a restart, and is told why."""
    world.registry.bootstrap(world.policy)
    deleted = pb.DeleteHeadRequest(head=f"snapshot@{world.push('snapshot', world.changed(1))}")
    async with heads_server(world) as (stub, _):
        await stub.DeleteHead(deleted)
        newer = world.push("snapshot", world.changed(2))
        error = await refused(stub.DeleteHead(deleted), "NOT_FOUND")
        assert error.details() == "no such head version: snapshot@1\nhint: it is no longer stored, and its number is never used again"
        assert "hint" not in (await refused(stub.DeleteHead(pb.DeleteHeadRequest(head="snapshot@3")), "NOT_FOUND")).details()
        await stub.DeleteHead(pb.DeleteHeadRequest(head=f"snapshot@{newer}"))
    world.store.close()
    with HeadStore.open(world.store.path, world.trunk_id) as again:
        with pytest.raises(NotFound, match=r"snapshot@2\nhint: it is no longer stored"):
            again.delete_version("snapshot", 2)
        record = world.store.get("policy", 1)
        assert again.add_version("snapshot", record.blob, record.manifest).version == 3


async def test_each_field_of_a_fit(tmp_path: Path) -> None:
    """FitOod is the one mutating method outside HeadService: its header, without an engine behind it."""
    header = trunk_pb2.FitOodHeader(name="helpful", num_prompts=100, request_id="fit")
    call = Call("/polyhead.v1.TrunkService/FitOod", "", Caller(Role.TRAINER, "a"), 0.0, True)
    layers = TrunkLayers("ab" * 32, "float32", 2, 0)
    with HeadStore.open(tmp_path / "store", "ab" * 32) as heads:
        store = OodStore(heads, 3)
        current_call.set(call)
        model = OodModel(np.zeros(2), np.eye(2), np.ones(2))
        made = store.add(ood.fit_record(header, layers, 2, request_digest(header)), model)
        assert OodStore(heads, 3).listing() == [made]
    services = SimpleNamespace(
        workers=SimpleNamespace(run=at_once),
        ood=OodFits(store, layers),
        spec=SimpleNamespace(d_model=2),
        config=SimpleNamespace(push_idle_s=1.0),
    )
    servicer = OodFitting(cast(Any, SimpleNamespace(services=services)))

    async def fit(asked: Message) -> OodFit:
        async def messages() -> AsyncIterator[trunk_pb2.FitOodRequest]:
            yield trunk_pb2.FitOodRequest(header=cast(Any, asked))

        return await servicer.fit(messages())

    assert await fit(header) == made
    changed = dict(variants(header))
    assert changed.keys() == {"name", "layer", "pooling", "shrinkage", "num_prompts"}
    for asked in changed.values():
        with pytest.raises(AlreadyExists):
            await fit(asked)
    current_call.set(dataclasses.replace(call, caller=Caller(Role.TRAINER, "b")))
    with pytest.raises(AlreadyExists):
        await fit(header)


async def at_once(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


async def test_the_ids_bind_after_a_restart(world: World, authenticator: Authenticator) -> None:
    world.registry.bootstrap(world.policy)
    async with heads_server(world, authenticator=authenticator) as (stub, _):
        send = senders(stub, world, "a")
        for name, request in first_requests(world).items():
            await send[name](request)
    kept = [world.store._requests(name) for name in carriers()]
    digests = [next(found)[0] for found in kept]
    world.store.close()
    with HeadStore.open(world.store.path, world.trunk_id) as again:
        assert [next(again._requests(name))[0] for name in carriers()] == digests
        assert all(len(digest) == 64 for digest in digests)


async def test_records_of_older_stores_compare_as_they_did(world: World) -> None:
    """They hold no digest: heads decide for an activation, name and file for a push."""
    world.registry.bootstrap(world.policy)
    version = world.push("policy", world.changed(1), request_id="PushHead")
    world.registry.activate({"policy": version}, request_id="ActivateHeads")
    assert world.store.version_of_request("PushHead").request_digest == ""  # type: ignore[union-attr]
    requests = first_requests(world)
    async with heads_server(world) as (stub, _):
        send = senders(stub, world, "a")
        assert (await send["PushHead"](requests["PushHead"])).head.version == version
        assert (await send["ActivateHeads"](requests["ActivateHeads"])).generation.number == 2
        noted = pb.ActivateHeadsRequest(heads={"policy": 2}, note="another note", request_id="ActivateHeads")
        assert (await send["ActivateHeads"](noted)).generation.number == 2
        assert await is_taken(send["ActivateHeads"](pb.ActivateHeadsRequest(heads={"policy": 1}, request_id="ActivateHeads")))
