"""Who may call what: bearer tokens, three roles, one table by full method name, default deny. Knows no request's content."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polyhead.heads.errors import InvalidArgument
from polyhead.server.errors import PermissionDenied, Unauthenticated

HASH_PREFIX = "sha256:"
MIN_TOKEN_LENGTH = 16


class Role(enum.Enum):
    WORKER = "worker"  # generates, scores, reads what is there
    TRAINER = "trainer"  # also moves weights and changes the active set
    ADMIN = "admin"  # also deletes


ANYONE = frozenset(Role) | {None}  # None: a caller without a token
EVERY_ROLE: frozenset[Role | None] = frozenset(Role)
TRAINERS: frozenset[Role | None] = frozenset({Role.TRAINER, Role.ADMIN})
ADMINS: frozenset[Role | None] = frozenset({Role.ADMIN})

ALLOWED: Mapping[str, frozenset[Role | None]] = {
    "/polyhead.v1.GenerationService/Generate": EVERY_ROLE,
    "/polyhead.v1.ScoringService/Score": EVERY_ROLE,
    "/polyhead.v1.ScoringService/ListConfigurations": EVERY_ROLE,
    "/polyhead.v1.ScoringService/TokenizeRules": EVERY_ROLE,
    "/polyhead.v1.TrunkService/GetTrunk": EVERY_ROLE,
    "/polyhead.v1.TrunkService/Tokenize": EVERY_ROLE,
    "/polyhead.v1.TrunkService/Detokenize": EVERY_ROLE,
    "/polyhead.v1.TrunkService/Encode": EVERY_ROLE,
    "/polyhead.v1.TrunkService/PullOutputEmbedding": TRAINERS,
    "/polyhead.v1.TrunkService/GetStatus": EVERY_ROLE,
    "/polyhead.v1.TrunkService/FitOod": TRAINERS,
    "/polyhead.v1.TrunkService/ListOodFits": EVERY_ROLE,
    "/polyhead.v1.HeadService/PushHead": TRAINERS,
    "/polyhead.v1.HeadService/PullHead": TRAINERS,
    "/polyhead.v1.HeadService/CopyHead": TRAINERS,
    "/polyhead.v1.HeadService/ActivateHeads": TRAINERS,
    "/polyhead.v1.HeadService/RollbackHeads": TRAINERS,
    "/polyhead.v1.HeadService/GetHead": EVERY_ROLE,
    "/polyhead.v1.HeadService/ListHeadTensors": TRAINERS,  # reads a whole file
    "/polyhead.v1.HeadService/ListHeads": EVERY_ROLE,
    "/polyhead.v1.HeadService/DeleteHead": ADMINS,
    "/polyhead.v1.HeadService/ListGenerations": EVERY_ROLE,
    "/polyhead.v1.HeadService/WatchHeads": EVERY_ROLE,
    "/grpc.health.v1.Health/Check": ANYONE,  # probes carry no token
    "/grpc.health.v1.Health/Watch": ANYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": EVERY_ROLE,
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
class Authenticator:
    """Holds token hashes only. Without any, everyone has every role: config allows that on loopback alone."""

    hashes: tuple[tuple[Role, str], ...] = ()  # ("sha256:...") per role

    @property
    def is_enabled(self) -> bool:
        return bool(self.hashes)

    def check(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Role | None:
        """The caller's role; raises Unauthenticated or PermissionDenied. A method that the table lacks is denied."""
        allowed = ALLOWED.get(method)
        if allowed is None:
            raise PermissionDenied("the method is not open to callers")
        if not self.is_enabled:
            return Role.ADMIN
        role = self._role_of(_bearer(metadata))
        if role not in allowed:
            if role is None:
                raise Unauthenticated("the call needs a valid token: metadata 'authorization: Bearer <token>'")
            raise PermissionDenied(f"the role may not call this method: {role.value}")
        return role

    def _role_of(self, token: str) -> Role | None:
        """Compares with every hash, in constant time each, so that time says nothing about which one matched."""
        presented = HASH_PREFIX + hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        matched = [role for role, known in self.hashes if hmac.compare_digest(known, presented)]
        return matched[0] if token and matched else None


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value.lower().startswith("bearer "):
            return value[len("bearer ") :].strip()
    return ""


def load_tokens(path: Path) -> tuple[tuple[Role, str], ...]:
    """Read a TOML file: `worker`, `trainer`, `admin`, each a token or a list of them, raw or as `sha256:...`."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        raise InvalidArgument("the tokens file is open to other users: chmod 600 it", field="tokens")
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InvalidArgument("the tokens file is not TOML", field="tokens") from None
    hashes: list[tuple[Role, str]] = []
    for name, value in plain.items():
        if name not in {role.value for role in Role}:
            raise InvalidArgument(
                f"unknown role in the tokens file: {name[:40]!r}\nhint: worker, trainer, admin", field="tokens"
            )
        tokens = value if isinstance(value, list) else [value]
        if not all(isinstance(token, str) for token in tokens):
            raise InvalidArgument(f"tokens must be texts: {name}", field="tokens")
        hashes += [(Role(name), hash_token(token)) for token in tokens]
    return tuple(hashes)
