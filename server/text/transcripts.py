"""Transcript formats: versioned files that say how a conversation is written as plain text, and what a reply in it must look like.

A turn is its role's opening and its text. A reply ends where another role's opening begins, so a reply's marker is already the start of the
next turn. Knows text only: prompts.py makes ids of it, replies.py checks what came back.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.server.rewards.configurations import (
    Configuration,
    ConfigurationFile,
    ConfigurationKind,
    add_once,
    find_newest,
    read_file,
    without,
)
from polyhead.server.text.continuation import Coder, Continuation
from polyhead.server.validation import FileModel, Name, own_error

SHIPPED = Path(__file__).parent / "format_files"
MAX_ROLES = 16  # an opening may be a stop string: sampling.py has the same limits
MAX_OPENING_BYTES = 256
FIELD = "formats"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Role:
    """Who speaks."""

    name: str
    opening: str  # "\n\nUser:"
    ends: tuple[str, ...]  # openings of the roles that may follow, which end its reply; empty: written by a program, never generated
    prompt: str  # stands before the first turn when this role's reply is asked for


@dataclass(frozen=True, slots=True)
class TranscriptFormat:
    """How turns are written. Its methods raise InvalidArgument naming the message at fault."""

    reference: str  # "sparrow@1"
    separator: str
    default_reply_role: str
    roles: Mapping[str, Role]
    file: ConfigurationFile

    @property
    def openings(self) -> tuple[str, ...]:
        return tuple(role.opening for role in self.roles.values())

    def reply_role(self, name: str, field: str) -> Role:
        """The role whose reply is asked for; "" means the format's own choice."""
        role = self.roles.get(name or self.default_reply_role)
        if role is None:
            raise InvalidArgument(f"{self.reference} has no role {name[:40]!r}: {', '.join(self.roles)}", field=field)
        if not role.ends:
            raise InvalidArgument(f"{role.name!r} of {self.reference} is written by a program and never generated", field=field)
        return role

    def written(self, messages: Sequence[Mapping[str, str]], reply: Role, field: str) -> str:
        """The turns, each with its opening, and the opening of the reply."""
        roles = [self._role_of(message, f"{field}[{index}].role") for index, message in enumerate(messages)]
        if roles and roles[-1] is reply:
            raise InvalidArgument(
                f"the last message is the {reply.name}'s own: use assistant_prefix to open a reply", field=f"{field}[{len(roles) - 1}].role"
            )
        texts = [
            self._turn(message["content"], role.opening, following.opening, f"{field}[{index}].content")
            for index, (message, (role, following)) in enumerate(zip(messages, itertools.pairwise([*roles, reply]), strict=True))
        ]
        return "".join(texts) + reply.opening

    def find_opening(self, text: str, start: int = 0) -> int:
        """Where the first opening begins, -1 if none does."""
        return min((place for opening in self.openings if (place := text.find(opening, start)) >= 0), default=-1)

    def check_closed(self, turn: str, start: int, following: str, field: str) -> None:
        """Turns are found by their openings: a text that holds one would be read as another turn."""
        place = self.find_opening(turn + following, start)
        if place != len(turn):
            found = next(opening for opening in self.openings if (turn + following).startswith(opening, place))
            raise InvalidArgument(
                f"the text holds {found!r}, which opens a turn in {self.reference}: it would be read as other turns", field=field
            )

    def _role_of(self, message: Mapping[str, str], field: str) -> Role:
        if message["role"] not in self.roles:
            raise InvalidArgument(f"{self.reference} has no role {message['role'][:40]!r}: {', '.join(self.roles)}", field=field)
        return self.roles[message["role"]]

    def _turn(self, content: str, opening: str, following: str, field: str) -> str:
        gap = self.separator if content and not content[0].isspace() else ""
        turn = opening + gap + content
        self.check_closed(turn, 1, following, field)
        return turn


class TranscriptBook:
    """All formats of the server. A shipped one that the tokenizer cannot write is set aside; one that was asked for is an error."""

    def __init__(self, coder: Coder, files: Iterable[Path] = ()) -> None:
        self._coder = coder
        self.formats: dict[str, TranscriptFormat] = {}
        self._unfit: dict[str, str] = {}  # shipped formats set aside, and why
        for path in sorted(SHIPPED.glob("*.yaml")):
            found = _format(read_file(path, FIELD))
            add_once(self.formats, found.reference, found, FIELD)
            try:
                _check_tokens(found, coder)
            except InvalidArgument as error:
                self._unfit[found.reference] = error.message
                logger.warning("%s is not offered: %s", found.reference, error.message)
        for path in files:
            found = _format(read_file(path, FIELD))
            _check_tokens(found, coder)
            add_once(self.formats, found.reference, found, FIELD)

    def find(self, reference: str, field: str) -> TranscriptFormat:
        """By "name@version", or the newest version by "name"."""
        found = find_newest(self.formats, reference, "transcript format", field)
        if why := self._unfit.get(found.reference):
            raise FailedPrecondition(f"{found.reference} does not fit this model's tokenizer: {why}", field=field)
        return found

    def configurations(self) -> Iterator[Configuration]:
        """What the server lists of these files."""
        for each in self.formats.values():
            yield each.file.listed(ConfigurationKind.TRANSCRIPT_FORMAT, set_aside=self._unfit.get(each.reference, ""))

    def add(self, file: ConfigurationFile, keep: Callable[[], None] | None) -> None:
        """See Book. Each mapping is replaced by a new one: others may be reading the old one."""
        found = _format(file)
        try:
            _check_tokens(found, self._coder)
        except InvalidArgument as error:
            if keep is not None:
                raise FailedPrecondition(error.message, field=file.field) from None
            logger.warning("%s is not offered: %s", found.reference, error.message)
            self._unfit = {**self._unfit, found.reference: error.message}
        else:
            if keep is not None:
                keep()
        self.formats = {**self.formats, found.reference: found}

    def remove(self, kind: ConfigurationKind, reference: str) -> None:
        """See Book."""
        self.formats, self._unfit = without(self.formats, reference), without(self._unfit, reference)


def _format(file: ConfigurationFile) -> TranscriptFormat:
    given = file.checked(_FormatFile)
    _check_apart({name: role.opening for name, role in given.roles.items()}, file)
    roles = {name: _role(name, given, file) for name in given.roles}
    if given.default_reply_role not in roles or not roles[given.default_reply_role].ends:
        raise file.error("default_reply_role", f"is no role that replies: {given.default_reply_role[:40]!r}")
    return TranscriptFormat(file.reference, given.separator, given.default_reply_role, roles, file)


def _check_apart(openings: Mapping[str, str], file: ConfigurationFile) -> None:
    """No opening may be equal to another, begin it or stand inside it: a text could then be read in two ways."""
    for name, opening in openings.items():
        for other, longer in openings.items():
            if other != name and opening in longer:
                raise file.error(f"roles.{name}.opening", f"stands inside the opening of {other}: {opening!r}")


def _role(name: str, given: _FormatFile, file: ConfigurationFile) -> Role:
    role, field = given.roles[name], f"roles.{name}"
    for index, follower in enumerate(role.followed_by):
        if follower not in given.roles:
            raise file.error(f"{field}.followed_by[{index}]", f"names no role: {follower[:40]!r}")
        if follower in role.followed_by[:index]:
            raise file.error(f"{field}.followed_by[{index}]", f"names a role twice: {follower[:40]!r}")
    if "prompt" in role.model_fields_set and not role.followed_by:
        raise file.error(f"{field}.prompt", "would never be used: a role without followed_by is never generated")
    return Role(name, role.opening, tuple(given.roles[follower].opening for follower in role.followed_by), role.prompt)


def _is_opening(text: str) -> str:
    if not text.strip() or len(text.encode()) > MAX_OPENING_BYTES:
        raise own_error(f"must have 1 to {MAX_OPENING_BYTES} bytes, not all white space")
    return text


class _RoleOfFile(FileModel):
    opening: Annotated[str, AfterValidator(_is_opening)]
    followed_by: Annotated[list[str], Field(default_factory=list)]
    prompt: str = ""


class _FormatFile(FileModel):
    separator: str = ""
    default_reply_role: str
    roles: Annotated[dict[Name, _RoleOfFile], Field(min_length=2, max_length=MAX_ROLES)]


def _check_tokens(found: TranscriptFormat, coder: Coder) -> None:
    """An opening must come back from its tokens as it went in, alone and behind a text, or it could not be found in a reply."""
    continuation = Continuation(coder)
    for role in found.roles.values():
        field = f"formats.roles.{role.name}.opening"
        alone = continuation.encode(role.opening, field)
        behind = [*coder.encode("a", special_tokens=False), *alone]
        if continuation.decode(alone) != role.opening or coder.decode(behind) != "a" + role.opening:
            raise InvalidArgument(
                f"the opening of {role.name} of {found.reference} is not the same after the tokenizer: {role.opening!r}",
                field=field,
            )
