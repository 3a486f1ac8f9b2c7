"""What must hold for a change of the active set: what the caller expects to be active, and which names may leave. Only asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from polyhead.heads.format.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, NotFound
from polyhead.heads.format.kinds import DEFAULT_HEAD
from polyhead.heads.format.manifest import check_name
from polyhead.heads.store.store import GenerationRecord, HeadStore, VersionRecord


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be active for a change to be made."""

    generation: int | None = None  # None: any
    versions: Mapping[str, int] = field(default_factory=dict)  # of these names; 0: none of the name. Other names may be any


ANY = Expected()


def answered(store: HeadStore, request_id: str, request_digest: str, heads: Mapping[str, int]) -> GenerationRecord | None:
    """The generation that this request made before. AlreadyExists if its id stands for another request."""
    store.check_request(request_id, request_digest)
    first = store.generation_of_request(request_id) if request_id else None
    if first is not None and first.request_digest and request_digest:
        return first  # the digests are equal, or `check_request` would have refused
    if first is not None and any(first.heads.get(name) != version for name, version in heads.items()):
        raise AlreadyExists(f"the request id was used for generation {first.number}, with other heads", field="request_id")
    return first


def check_expected(store: HeadStore, expected: Expected) -> None:
    """Asked first, which spares the work, and again when it is the change's turn."""
    current = store.current
    number, active = (current.number, current.heads) if current else (0, {})
    if expected.generation is not None and expected.generation != number:
        raise Conflict(
            f"the active set has moved on: generation {number}, not {expected.generation}",
            field="expected_generation",
            metadata={"current_generation": str(number)},
        )
    for name, version in expected.versions.items():
        if (found := active.get(name, 0)) != version:
            raise Conflict(
                f"{name} has moved on: {_shown(name, found)} is active, not {_shown(name, version)}",
                field=f"expected_versions[{name}]",
                metadata={"current_generation": str(number), "name": name, "current_version": str(found)},
            )


def check_digests(store: HeadStore, heads: Mapping[str, int], digests: Mapping[str, str]) -> None:
    """Whether versions that are to become active hold the weights that the caller means. A missing one is found later."""
    for name, digest in digests.items():
        try:
            held = store.get(name, heads[name]).digest
        except NotFound:
            continue
        if held != digest:
            raise FailedPrecondition(
                f"{_shown(name, heads[name])} holds other weights here: digest {held[:12]}, not {digest[:12]}\n"
                "hint: was it pushed to another server behind this address? push it to this one",
                field=f"digests[{name}]",
                metadata={"name": name, "digest": held},
            )


def check_leaving(leaving: Collection[str], heads: Mapping[str, int], before: Mapping[str, int]) -> None:
    if DEFAULT_HEAD in leaving:
        problem = f"{DEFAULT_HEAD} cannot leave the active set: requests that name no head run on it"
        raise InvalidArgument(f"{problem}\nhint: activate another version of it", field="deactivate")
    for name in leaving:
        if name in heads:
            raise InvalidArgument(f"a head cannot be activated and deactivated in one change: {name!r}", field="deactivate")
        if name not in before:
            raise NotFound(f"no active head of this name: {name!r}", field="deactivate", metadata={"name": name})


def stored_version(store: HeadStore, name: str, version: int) -> VersionRecord:
    field = f"heads[{name[:64]}]"
    check_name(name, field)
    try:
        return store.get(name, version)
    except NotFound as error:
        raise NotFound(error.message, field=field, metadata={"name": f"{name}@{version}"}) from None


def stored_generation(store: HeadStore, number: int, field: str) -> GenerationRecord:
    try:
        return store.generation(number)
    except NotFound as error:  # never there, or no longer kept
        raise NotFound(error.message, field=field, metadata={"name": str(number)}) from None


def _shown(name: str, version: int) -> str:
    return f"{name}@{version}" if version else f"no {name}"
