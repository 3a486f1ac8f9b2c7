"""The methods that a server answers, and what the contract says of each (protos/polyhead/v1/options.proto). Knows no handler."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from polyhead.v1 import fleet_pb2, generation_pb2, heads_pb2, options_pb2, scoring_pb2, trunk_pb2

_FILES = (generation_pb2, scoring_pb2, trunk_pb2, heads_pb2, fleet_pb2)
SERVICES = tuple(name for file in _FILES for name in (each.full_name for each in file.DESCRIPTOR.services_by_name.values()))


class Access(enum.Enum):
    """Whose token may call a method."""

    NOBODY = options_pb2.ACCESS_UNSPECIFIED  # the contract does not say
    EVERY_ROLE = options_pb2.ACCESS_EVERY_ROLE
    WORKERS = options_pb2.ACCESS_WORKERS
    TRAINERS = options_pb2.ACCESS_TRAINERS
    ADMINS = options_pb2.ACCESS_ADMINS
    ANYONE = -1  # also a caller without a token; none of the contract's


@dataclass(frozen=True, slots=True)
class Method:
    """One method, by its full name "/polyhead.v1.HeadService/PushHead"."""

    access: Access
    is_change: bool = False  # of what the server stores: a follower refuses it
    is_for_replicas: bool = False  # a follower's token may call it, too
    is_long_lived: bool = False  # a stream without an end of its own: no deadline of ours, and a drain does not wait for it


def _own_methods() -> Iterator[tuple[str, Method]]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                facts = method.GetOptions().Extensions[options_pb2.method]
                yield f"/{service.full_name}/{method.name}", Method(Access(facts.access), facts.changes, facts.replicas, facts.long_lived)


METHODS: Mapping[str, Method] = {
    **dict(_own_methods()),
    "/grpc.health.v1.Health/Check": Method(Access.ANYONE),  # probes carry no token
    "/grpc.health.v1.Health/Watch": Method(Access.ANYONE, is_long_lived=True),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Method(Access.WORKERS),
}
LONG_LIVED = frozenset(name for name, method in METHODS.items() if method.is_long_lived)
