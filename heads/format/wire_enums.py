"""Enums of ours beside those of the contract: READ_POSITION_LAST is `ReadPosition.LAST`, and "last" where a caller writes it.

The names are the map, so that a new member needs no other place. Knows no message: an enum of the contract is handed in.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from polyhead.heads.format.errors import InvalidArgument

E = TypeVar("E", bound=enum.Enum)


class ContractEnum(Protocol):
    """An enum as protobuf's generated modules hold it, such as `types_pb2.HeadKind`."""

    def items(self) -> Iterable[tuple[str, int]]: ...


def wire_numbers(contract: ContractEnum) -> dict[str, int]:
    """{"last": 1, ...}: numbers by the names that callers write, without the one for "not set"."""
    names = {number: name for name, number in contract.items()}
    prefix = names[0].removesuffix("UNSPECIFIED")
    return {name.removeprefix(prefix).lower(): number for number, name in names.items() if number}


class WireEnum(Generic[E]):
    """One of our enums and the contract's enum of the same members. KeyError at import if a member has no number."""

    def __init__(self, contract: ContractEnum, ours: type[E], unset: E | None = None) -> None:
        """`unset` is the member for which the contract has no name: it stands for 0."""
        known = wire_numbers(contract)
        self._numbers = {member: 0 if member is unset else known[member.name.lower()] for member in ours}
        self._members: Mapping[int, E] = {number: member for member, number in self._numbers.items()}

    def number(self, member: E) -> Any:
        """What goes on the wire; `Any` since every enum of the contract is a type of its own."""
        return self._numbers[member]

    def member(self, number: int, field: str) -> E | None:
        """None for 0, which is "not set". InvalidArgument, naming the field, for a number that the contract lacks."""
        if number not in self._members and number != 0:
            raise InvalidArgument(f"unknown {field.rpartition('.')[2]}: {int(number)}", field=field)
        return self._members.get(number)

    def member_or(self, number: int, field: str, default: E) -> E:
        """The same with `default` for 0. Not `or`: a member may be false, as Priority.INTERACTIVE is."""
        member = self.member(number, field)
        return default if member is None else member
