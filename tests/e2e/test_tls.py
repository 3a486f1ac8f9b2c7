"""TLS as callers meet it: an authority of one's own, tokens inside, and what each mistake of theirs is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from polyhead.client import AsyncClient, Client, Piece
from polyhead.client.cli.app import build_app
from polyhead.client.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from polyhead.server.rpc.auth import ALLOWED, Role
from tests.e2e.support import MODEL_WORK, PROMPT, call, error_of, serving
from tests.openssl import Pair, make_pair, needs_openssl

pytestmark = needs_openssl
TOKENS = {name: f"{name}-token-of-the-tests" for name in ("annotator", "worker", "trainer", "admin")}
METHODS = "/polyhead.v1."
OURS = "polyhead.test"  # the name in the certificate, beside the address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Pair:
    return make_pair(folder / "authority", names="DNS:authority.test")


@pytest.fixture(scope="module")
def ours(folder: Path, authority: Pair) -> Pair:
    return make_pair(folder / "ours", names=f"IP:127.0.0.1,DNS:{OURS}", issuer=authority)


@pytest.fixture(scope="module")
def address(tiny_model: Path, folder: Path, ours: Pair) -> Iterator[str]:
    """A server beyond loopback: the only way to start one there without --insecure."""
    certificate, key = map(str, ours)
    tokens = folder / "tokens.toml"
    tokens.write_text("".join(f'{role} = "{token}"\n' for role, token in TOKENS.items()))
    tokens.chmod(0o600)
    flags = ("--host", "0.0.0.0", "--tls-cert", certificate, "--tls-key", key, "--tokens", str(tokens))
    with serving(tiny_model, folder / "store", *flags) as server:
        yield f"127.0.0.1:{server.ready['port']}"


@pytest.fixture(scope="module")
def trusted(authority: Pair) -> bytes:
    return authority[0].read_bytes()


@pytest.fixture(scope="module")
def strangers(folder: Path) -> Path:
    return make_pair(folder / "strangers")[0]


@pytest.fixture(scope="module")
def untrusted(strangers: Path) -> bytes:
    return strangers.read_bytes()


def test_every_shape_of_call_goes_over_tls(address: str, trusted: bytes) -> None:
    """Unary, both ways of streaming, and the role that each token stands for."""
    with (
        Client(address, token=TOKENS["worker"], root_certificates=trusted) as worker,
        Client(address, token=TOKENS["trainer"], root_certificates=trusted) as trainer,
    ):
        worker.wait_ready(10)
        assert len(worker.generate([PROMPT], max_new_tokens=3, ignore_eos=True)[0].token_ids) == 3
        weights = trainer.pull_head("policy")
        assert trainer.push_head("policy", weights, kind="policy") == 2
        with pytest.raises(PermissionDenied):
            worker.pull_head("policy")


async def test_the_asyncio_client_speaks_tls_too(address: str, trusted: bytes, untrusted: bytes) -> None:
    async with AsyncClient(address, token=TOKENS["worker"], root_certificates=trusted) as client:
        assert (await client.status()).generation == 1
    async with AsyncClient(address, token=TOKENS["worker"], root_certificates=untrusted) as client:
        with pytest.raises(Unavailable, match="hint: the server's certificate is not trusted"):
            await client.status()


def test_a_call_without_a_token_is_refused_inside_the_connection(address: str, trusted: bytes) -> None:
    for token in (None, "a-token-that-nobody-knows"):
        with Client(address, token=token, root_certificates=trusted) as client, pytest.raises(Unauthenticated, match="needs a valid token"):
            client.status()


def refusals(address: str, **credentials: Any) -> list[str]:
    """What a unary and a streaming call end with."""
    said = []
    with Client(address, token=TOKENS["worker"], **credentials) as client:
        runs: list[Callable[[], Any]] = [client.status, lambda: client.generate([PROMPT], max_new_tokens=1)]
        for run in runs:
            with pytest.raises(Unavailable) as caught:
                run()
            said.append(caught.value.message)
            assert address in caught.value.message.splitlines()[0]
    return said


def test_another_ca_is_told_that_it_did_not_sign_the_certificate(address: str, untrusted: bytes) -> None:
    for message in (*refusals(address, root_certificates=untrusted), *refusals(address, tls=True)):
        assert "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate" in message, "the whole reason, not a part of it"
        assert "hint: the server's certificate is not trusted: give the one that signed it" in message


def test_a_certificate_for_another_name_is_told_apart(address: str, trusted: bytes) -> None:
    for message in refusals(address, root_certificates=trusted, server_name="other.test"):
        assert message.splitlines()[1] == (
            "hint: the server's certificate is for another name: connect by that name, or say it with server_name="
        )
    with Client(address, token=TOKENS["worker"], root_certificates=trusted, server_name=OURS) as client:
        assert client.status().generation == 1


def test_plaintext_to_a_tls_server_and_back(address: str, trusted: bytes, tiny_model: Path, tmp_path: Path) -> None:
    """Nothing is sent in clear: the server closes before it has read a token."""
    for message in refusals(address):
        assert "hint: does the server want TLS? then give root_certificates=" in message
    with serving(tiny_model, tmp_path / "store") as server:
        for message in refusals(server.address, root_certificates=trusted):
            assert "hint: the server speaks without TLS" in message


def test_what_is_no_certificate_is_refused_before_a_call(address: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Client(address, root_certificates=b"/etc/ssl/ca.pem")
    assert caught.value.field == "root_certificates"


def test_the_command_line_trusts_the_file_that_it_is_given(address: str, authority: Pair, strangers: Path) -> None:
    def status(certificates: Path) -> Any:
        arguments = ["status", "--server", address, "--token", TOKENS["worker"], "--tls-ca", str(certificates), "--json"]
        return CliRunner().invoke(build_app(arguments), arguments)

    assert status(authority[0]).exit_code == 0
    refused = status(strangers)
    assert refused.exit_code == 1
    assert "certificate is not trusted" in refused.stderr


def test_a_key_of_another_certificate_ends_the_start_with_its_name(tiny_model: Path, tmp_path: Path, ours: Pair) -> None:
    _, key = make_pair(tmp_path / "other")
    flags = ("--tls-cert", str(ours[0]), "--tls-key", str(key))
    with pytest.raises(Unavailable, match="exit status 2") as caught, serving(tiny_model, tmp_path / "store", *flags):
        pass
    assert "error: tls_key does not belong to tls_cert" in caught.value.message
    assert "address is in use" not in caught.value.message


def test_each_role_may_call_what_it_is_for(address: str, trusted: bytes) -> None:
    """Every method that the client has, over TLS, by the lowest role that may; each lower role is refused before any work."""
    with contextlib.ExitStack() as stack:
        _, worker, trainer, admin, nobody = (
            stack.enter_context(Client(address, token=token, root_certificates=trusted)) for token in (*TOKENS.values(), None)
        )
        weights = trainer.pull_head("policy")
        spare = trainer.copy_head("value@1", "spare")
        calls: list[tuple[int, Callable[[Client], Any]]] = [
            (0, lambda c: c.encode([PROMPT], pooling="mean")),
            (0, lambda c: c.tokenize_rules(["no-insults"])),
            (0, lambda c: c.configurations()),
            (0, lambda c: c.ood_fits()),
            (0, lambda c: c.tokenize("x")),
            (0, lambda c: c.detokenize([70])),
            (0, lambda c: c.trunk()),
            (0, lambda c: c.heads()),
            (0, lambda c: c.head("policy")),
            (0, lambda c: c.generations()),
            (0, lambda c: next(iter(c.watch()))),
            (0, lambda c: c.score([(PROMPT, [80])], recipe="sparrow", rules=["no-insults"])),
            (0, lambda c: c.generate([PROMPT], n=4, best=1, recipe="preference", max_new_tokens=2)),
            (0, lambda c: list(c.stream(PROMPT, max_new_tokens=2))),
            (1, lambda c: c.fit_ood("normal", [[1, 70 + index, 71 + index % 3] for index in range(40)])),
            (1, lambda c: c.pull_head("policy")),
            (1, lambda c: c.push("policy", weights, base="policy@1", validate_only=True)),
            (1, lambda c: c.copy_head("value@1", "spare")),
            (1, lambda c: c.activate({"spare": spare})),
            (1, lambda c: c.rollback()),
            (2, lambda c: c.delete_head(f"spare@{spare + 1}")),
        ]
        for lowest, method in calls:
            before = trainer.status()
            with pytest.raises(Unauthenticated):
                method(nobody)
            for caller in (worker, trainer, admin)[:lowest]:
                with pytest.raises(PermissionDenied, match="needs a token of the role"):
                    method(caller)
            after = trainer.status()
            assert [after.counters[name] for name in MODEL_WORK] == [before.counters[name] for name in MODEL_WORK]
            assert after.generation == before.generation
            method((worker, trainer, admin)[lowest])


@pytest.mark.parametrize("role", [None, Role.ANNOTATOR, Role.WORKER, Role.TRAINER])
def test_every_method_of_the_contract_refuses_lower_roles_on_the_wire(address: str, trusted: bytes, role: Role | None) -> None:
    """With a message that no method would take: who may not call is told that, and nothing of the message."""
    refused = [method for method, allowed in ALLOWED.items() if method.startswith(METHODS) and role not in allowed]
    assert len(refused) == {None: 28, Role.ANNOTATOR: 16, Role.WORKER: 13, Role.TRAINER: 2}[role]
    metadata = [("authorization", f"Bearer {TOKENS[role.value]}")] if role else None
    wanted = grpc.StatusCode.PERMISSION_DENIED if role else grpc.StatusCode.UNAUTHENTICATED
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(trusted)) as channel:
        for method in refused:
            error = error_of(lambda method=method: call(channel, method.removeprefix(METHODS), b"\xff", metadata=metadata))
            assert error.code() is wanted, method


def test_an_annotator_gets_replies_within_caps_and_no_numbers(address: str, trusted: bytes) -> None:
    """What replays a reply comes, log-probs do not, of scores neither; more than the caps is refused before any model work."""
    with Client(address, token=TOKENS["annotator"], root_certificates=trusted) as client:
        given = {"n": 2, "max_new_tokens": 3, "score": ["reference", "value"], "recipe": "kl", "priority": "interactive"}
        for sample in [*client.generate([[5, 6]], **given), *client.generate([[5, 6]], delivery="groups", **given)]:
            assert (len(sample.logprobs), len(sample.sampling_logprobs), len(sample.scores["reference"].logprobs)) == (0, 0, 0)
            assert len(sample.scores["value"].values) == len(sample.token_ids) > 0
            assert sample.sample_seed
            assert sample.digest
            assert sample.reward is not None
            assert len(sample.reward.kl) == 0
            assert "kl" not in sample.reward.parts
        pieces = [event for event in client.events([[5, 6]], n=2, max_new_tokens=3) if isinstance(event, Piece)]
        assert {piece.sample_index for piece in pieces} == {0, 1}
        assert not any(len(piece.logprobs) for piece in pieces)
        [item] = client.score([([5, 6], [7, 8])], heads=["reference"])
        assert len(item.scores["reference"].logprobs) == 0
        before = client.status().counters
        beyond: list[dict[str, Any]] = [{"n": 17}, {"max_new_tokens": 2049}, {"return_states": True}, {"priority": "batch"}]
        for options in beyond:
            with pytest.raises(PermissionDenied, match="the role annotator"):
                client.generate([[5, 6]], **options)
        with pytest.raises(PermissionDenied, match="16 items"):
            client.score([([5], [6])] * 17, heads=["reference"])
        assert [client.status().counters[name] for name in MODEL_WORK] == [before[name] for name in MODEL_WORK]
    with Client(address, token=TOKENS["worker"], root_certificates=trusted) as client:
        [sample] = client.generate([[5, 6]], max_new_tokens=3)
        assert len(sample.logprobs) == len(sample.token_ids)
