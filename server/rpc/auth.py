"""Who calls, and what they may call: bearer tokens, five roles, principals and teams. What a method asks for is said by the contract.

Knows no request's content.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rpc.errors import PermissionDenied, Unauthenticated
from polyhead.server.rpc.methods import METHODS, Access
from polyhead.server.validation import FileModel, Lax, checked

HASH_PREFIX = "sha256:"
MIN_TOKEN_LENGTH = 16
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class Role(enum.Enum):
    ANNOTATOR = "annotator"  # generates and scores within caps, for people who judge: no states, no log-probs
    WORKER = "worker"  # generates and scores without caps, also reads boundary states
    TRAINER = "trainer"  # also moves weights and changes the active set
    ADMIN = "admin"  # also deletes
    REPLICA = "replica"  # follows: reads heads, history and configurations, and nothing else


_ROLES: Mapping[Access, frozenset[Role | None]] = {  # None: a caller without a token
    Access.NOBODY: frozenset(),
    Access.ANYONE: frozenset({*Role, None}),
    Access.EVERY_ROLE: frozenset({*Role} - {Role.REPLICA}),
    Access.WORKERS: frozenset({Role.WORKER, Role.TRAINER, Role.ADMIN}),
    Access.TRAINERS: frozenset({Role.TRAINER, Role.ADMIN}),
    Access.ADMINS: frozenset({Role.ADMIN}),
}
ALLOWED: Mapping[str, frozenset[Role | None]] = {
    name: _ROLES[method.access] | ({Role.REPLICA} if method.is_for_replicas else frozenset()) for name, method in METHODS.items()
}


def hash_token(token: str) -> str:
    """`sha256:<64 hex digits>`; a text that has that form already is kept. A short token is refused."""
    if token.startswith(HASH_PREFIX):
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", token):
            raise InvalidArgument("a hashed token must be 'sha256:' and 64 hex digits", field="tokens")
        return token
    if len(token) < MIN_TOKEN_LENGTH:
        raise InvalidArgument(f"a token needs at least {MIN_TOKEN_LENGTH} characters: it has {len(token)}", field="tokens")
    return HASH_PREFIX + hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Caps:
    """What one request of a role may ask for, at most; None: whatever the server allows."""

    samples: int | None = None  # over all prompts and arms, and items to score
    new_tokens: int | None = None  # of one sample


CAPS: Mapping[Role, Caps] = {Role.ANNOTATOR: Caps(samples=16, new_tokens=2048)}  # where the tokens file says nothing
NO_CAPS = Caps()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call. The principal counts what is held for it; a team's callers share their prompts' caches."""

    role: Role | None = None  # None: a caller without a token
    principal: str = ""  # of the tokens file; else made from the token's hash, so that each token is a principal of its own
    team: str = ""  # of the tokens file; tokens without one share the team ""
    caps: Caps = NO_CAPS  # of its role

    def cache_salt(self, given: str) -> str:
        """What the blocks of this caller's prompts are keyed by: no other team can make the same, whatever salt it gives.

        The team "" keeps what it gives. "\0" begins the others: no team's name holds it, and in front of a given one it is doubled.
        """
        if self.team:
            return f"\0{self.team}\0{given}"
        return f"\0{given}" if given.startswith("\0") else given


EVERYONE = Caller(Role.ADMIN)  # a server without tokens cannot tell callers apart


@dataclass(frozen=True, slots=True)
class Token:
    """One accepted token, by its hash, and who presents it."""

    hash: str  # "sha256:..."
    caller: Caller

    @classmethod
    def of(cls, role: Role, token: str, principal: str = "", team: str = "", caps: Caps | None = None) -> Token:
        """A token, raw or hashed. Raises InvalidArgument for a token that is too short and for a name with other characters."""
        hashed = hash_token(token)
        for name, value in (("principal", principal), ("team", team)):
            if value and not _NAME.fullmatch(value):
                raise InvalidArgument(f"a {name} must have 1 to 64 letters, digits or ._@-: {value[:80]!r}", field="tokens")
        return cls(hashed, Caller(role, principal or f"token-{hashed[len(HASH_PREFIX) :][:12]}", team, caps or CAPS.get(role, NO_CAPS)))


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Holds token hashes only. Without any, everyone has every role: config allows that on loopback alone."""

    tokens: tuple[Token, ...] = ()

    @property
    def is_enabled(self) -> bool:
        return bool(self.tokens)

    @property
    def has_several_teams(self) -> bool:
        return len({token.caller.team for token in self.tokens}) > 1

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """The caller; raises Unauthenticated or PermissionDenied. A method that says nothing of access is denied."""
        allowed = ALLOWED.get(method)
        if not allowed:
            raise PermissionDenied("the method is not open to callers")
        if not self.is_enabled:
            return EVERYONE
        caller = self._find(_bearer(metadata))
        if caller.role not in allowed:
            if caller.role is None:
                raise Unauthenticated("the call needs a valid token: metadata 'authorization: Bearer <token>'")
            needed = " or ".join(role.value for role in Role if role in allowed)
            raise PermissionDenied(f"the method needs a token of the role {needed}: this one has the role {caller.role.value}")
        return caller

    def _find(self, token: str) -> Caller:
        """Compares with every hash, in constant time each, so that time says nothing about which one matched."""
        presented = HASH_PREFIX + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        matched = [known.caller for known in self.tokens if hmac.compare_digest(known.hash, presented)]
        return matched[0] if token and matched else Caller()


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value.lower().startswith("bearer "):
            return value[len("bearer ") :].strip()
    return ""


def load_tokens(path: Path) -> tuple[Token, ...]:
    """Read a TOML file: `annotator`, `worker`, `trainer`, `admin`, `replica`, each an entry or a list of them, and `[caps.ROLE]`.

    An entry is a token, raw or as `sha256:...`, or a table `{token = "...", principal = "...", team = "..."}`.
    Caps are `samples` and `new_tokens`. InvalidArgument names the key and shows no value.
    """
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        raise InvalidArgument("the tokens file is open to other users: chmod 600 it", field="tokens")
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InvalidArgument("the tokens file is not TOML", field="tokens") from None
    given = checked(_TokensFile, plain, "the tokens file", "tokens", shows_values=False)
    return tuple(
        Token.of(role, entry.token, entry.principal, entry.team, given.caps_of(role))
        for role, entries in given.by_role.items()
        for entry in entries
    )


class _Entry(FileModel):
    token: str
    principal: str = ""
    team: str = ""


def _entries(value: object) -> object:
    """One entry or a list of them, where a text is a token without names."""
    return [{"token": each} if isinstance(each, str) else each for each in (value if isinstance(value, list) else [value])]


_Entries = Annotated[list[_Entry], BeforeValidator(_entries), Field(default_factory=list)]
_Cap = Annotated[int, Field(gt=0)]


class _CapsOfFile(FileModel):
    samples: _Cap | None = None  # None: the role's own
    new_tokens: _Cap | None = None


class _TokensFile(FileModel):
    annotator: _Entries
    worker: _Entries
    trainer: _Entries
    admin: _Entries
    replica: _Entries
    caps: Annotated[dict[Annotated[Role, Lax], _CapsOfFile], Field(default_factory=dict)]

    @property
    def by_role(self) -> Mapping[Role, list[_Entry]]:
        return {role: getattr(self, role.value) for role in Role}  # a key for each role, above

    def caps_of(self, role: Role) -> Caps:
        """Those of the file, else the role's own."""
        given = self.caps.get(role, _CapsOfFile()).model_dump(exclude_none=True)
        return replace(CAPS.get(role, NO_CAPS), **given)
