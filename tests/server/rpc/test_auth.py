"""Roles, tokens, and the table that must name every method of every service."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rpc.auth import ALLOWED, Authenticator, Caller, Caps, Role, Token, hash_token, load_tokens
from polyhead.server.rpc.errors import PermissionDenied, Unauthenticated
from polyhead.server.rpc.methods import METHODS as CONTRACT
from polyhead.v1 import fleet_pb2, generation_pb2, heads_pb2, options_pb2, scoring_pb2, trunk_pb2

FILES = [fleet_pb2, generation_pb2, heads_pb2, scoring_pb2, trunk_pb2, health_pb2, reflection_pb2]
METHODS = sorted(
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
TOKENS = {role: f"{role.value}-token-0123456789" for role in Role}
AUTH = Authenticator(tuple(Token.of(role, token) for role, token in TOKENS.items()))


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("authorization", f"Bearer {token}")]


def test_the_table_names_exactly_the_methods_that_exist() -> None:
    assert sorted(ALLOWED) == METHODS
    assert all(ALLOWED.values()), "a method of the contract does not say whose it is"


def test_no_stream_is_retried() -> None:
    """With grpcio 1.85 a stream that is refused while the server drains hangs for ever, past its deadline."""
    for file in (fleet_pb2, generation_pb2, heads_pb2, scoring_pb2, trunk_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                facts = method.GetOptions().Extensions[options_pb2.method]
                is_stream = method.client_streaming or method.server_streaming
                assert facts.retryable == (not is_stream and method.name != "DeleteHead"), method.full_name
                assert not facts.long_lived or is_stream


@pytest.mark.parametrize("caller", [None, "bad", *Role])
def test_every_method_and_caller_follows_the_table(caller: Role | str | None) -> None:
    role = caller if isinstance(caller, Role) else None
    metadata = bearer(TOKENS[role]) if role else bearer("wrong-token-0123456789") if caller else []
    outcomes = {method: outcome(method, metadata) for method in METHODS}
    refused = PermissionDenied if role else Unauthenticated
    assert outcomes == {method: role if role in ALLOWED[method] else refused for method in METHODS}


def outcome(method: str, metadata: list[tuple[str, str | bytes]]) -> object:
    """The caller's role, or the error's class."""
    try:
        return AUTH.check(method, metadata).role
    except (PermissionDenied, Unauthenticated) as error:
        return type(error)


def test_trainers_push_and_workers_do_not() -> None:
    assert ALLOWED["/polyhead.v1.HeadService/PushHead"] == {Role.TRAINER, Role.ADMIN}
    assert ALLOWED["/polyhead.v1.HeadService/DeleteHead"] == {Role.ADMIN}


def test_a_follower_reads_what_it_copies_and_nothing_else() -> None:
    services = {"FleetService": ["Follow"], "ScoringService": ["ListConfigurations"], "TrunkService": ["GetTrunk"]}
    services["HeadService"] = ["GetHead", "ListGenerations", "ListHeads", "PullHead"]
    expected = {f"/polyhead.v1.{service}/{method}" for service, methods in services.items() for method in methods}
    open_to_all = {name for name, roles in ALLOWED.items() if None in roles}
    assert {name for name, roles in ALLOWED.items() if Role.REPLICA in roles} == expected | open_to_all


def test_what_a_follower_refuses_is_said_by_the_contract() -> None:
    changes = {name.rpartition("/")[2] for name, method in CONTRACT.items() if method.is_change}
    heads = {"PushHead", "CopyHead", "ActivateHeads", "RollbackHeads", "LabelHead", "DeleteHead"}
    assert changes == heads | {"FitOod", "AddConfiguration", "RetireConfiguration"}


def test_a_method_outside_the_table_is_denied_to_everyone() -> None:
    for authenticator in (AUTH, Authenticator()):
        with pytest.raises(PermissionDenied):
            authenticator.check("/polyhead.v1.HeadService/Backdoor", bearer(TOKENS[Role.ADMIN]))


def test_without_tokens_everyone_is_admin() -> None:
    assert Authenticator().check("/polyhead.v1.HeadService/DeleteHead", []).role is Role.ADMIN


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic abc", "Bearer  x", b"Bearer x"])
def test_odd_headers(value: str | bytes) -> None:
    with pytest.raises(Unauthenticated):
        AUTH.check("/polyhead.v1.ScoringService/Score", [("authorization", value)])


def test_only_hashes_are_kept() -> None:
    assert all(token not in repr(AUTH) for token in TOKENS.values())


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_tokens_file(tmp_path: Path) -> None:
    hashed = hash_token("trainer-token-0123456789")
    file = write(tmp_path / "t.toml", f'worker = ["worker-token-0123456789", "other-token-0123456789"]\ntrainer = "{hashed}"\n')
    auth = Authenticator(load_tokens(file))
    for token, role in (("other-token-0123456789", Role.WORKER), ("trainer-token-0123456789", Role.TRAINER)):
        assert auth.check("/polyhead.v1.ScoringService/Score", bearer(token)).role is role


def test_a_principal_and_a_team_survive_a_tokens_rotation(tmp_path: Path) -> None:
    entries = [f'{{token = "{age}-token-0123456789", principal = "rollouts-1", team = "red"}}' for age in ("old", "new")]
    auth = Authenticator(load_tokens(write(tmp_path / "t.toml", f"worker = [{', '.join(entries)}]\n")))
    callers = {auth.check("/polyhead.v1.ScoringService/Score", bearer(f"{age}-token-0123456789")) for age in ("old", "new")}
    assert callers == {Caller(Role.WORKER, "rollouts-1", "red")}


def test_tokens_without_names_are_principals_of_their_own_in_one_team(tmp_path: Path) -> None:
    file = write(tmp_path / "t.toml", 'worker = ["worker-token-0123456789", "other-token-0123456789"]\n')
    first, second = (token.caller for token in load_tokens(file))
    assert first.principal != second.principal
    assert first.team == second.team == ""
    assert "worker-token" not in first.principal


def test_caps_are_a_roles_own_or_the_files(tmp_path: Path) -> None:
    """An annotator has some without being told; the file changes one and leaves the other, and gives a worker some."""
    tokens = 'annotator = "annotator-token-0123456789"\nworker = "worker-token-0123456789"\n'
    annotator, worker = (token.caller for token in load_tokens(write(tmp_path / "a.toml", tokens)))
    assert (annotator.caps, worker.caps) == (Caps(16, 2048), Caps())
    text = f"{tokens}[caps.annotator]\nsamples = 4\n[caps.worker]\nnew_tokens = 9\n"
    annotator, worker = (token.caller for token in load_tokens(write(tmp_path / "b.toml", text)))
    assert (annotator.caps, worker.caps) == (Caps(4, 2048), Caps(None, 9))


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ('worker = "worker-token-0123456789"\ncaps = 3', 0o600, "the tokens file: caps must be a mapping"),
        ('worker = "worker-token-0123456789"\n[caps.boss]\nsamples = 3', 0o600, r"caps\.boss must be 'annotator', 'worker'"),
        ('worker = "worker-token-0123456789"\n[caps.worker]\nsample = 3', 0o600, r"caps\.worker\.sample is unknown\nhint: known are s"),
        ('worker = "worker-token-0123456789"\n[caps.worker]\nsamples = 0', 0o600, r"caps\.worker\.samples must be above 0"),
        ('worker = {principal = "p"}', 0o600, r"worker\[0\]\.token is missing"),
        ('worker = {token = "worker-token-0123456789", boss = "p"}', 0o600, r"\[0\]\.boss is unknown\nhint: known are token, princ"),
        ('worker = {token = "worker-token-0123456789", team = 3}', 0o600, r"worker\[0\]\.team must be a text in quotes"),
        ('worker = {token = "worker-token-0123456789", team = "a b"}', 0o600, "a team must have 1 to 64 letters"),
        ('worker = "worker-token-0123456789"', 0o604, "chmod 600"),
        ('boss = "worker-token-0123456789"', 0o600, "the tokens file: boss is unknown\nhint: known are annotator, worker, trainer, admin"),
        ('worker = "short"', 0o600, "at least 16 characters"),
        ("worker = 3", 0o600, r"worker\[0\] must be a mapping with token, principal, team"),
        ("worker", 0o600, "not TOML"),
        ('worker = "sha256:zz"', 0o600, "64 hex digits"),
        ("worker = [3458764513820540928]", 0o600, r"must be a mapping with token, principal, team$"),  # may be a secret
    ],
)
def test_bad_tokens_files(tmp_path: Path, text: str, mode: int, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        load_tokens(write(tmp_path / "t.toml", text, mode))
    assert caught.value.field.startswith("tokens")
    assert "0123456789" not in caught.value.message
