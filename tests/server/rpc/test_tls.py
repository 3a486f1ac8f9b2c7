"""Certificates and keys that gRPC would start with, or would call an address in use: each is refused with the setting's name."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import grpc.aio
import pytest

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.config import load_config
from polyhead.server.rpc.listen import SERVER_OPTIONS, bind
from polyhead.server.rpc.tls import read_pair
from tests.openssl import make_pair, needs_openssl

pytestmark = needs_openssl


def refusal(certificate: Path, key: Path) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        read_pair(certificate, key)
    assert "/" not in caught.value.message
    return caught.value.field, caught.value.message


def test_a_good_pair_is_read_as_it_is(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path / "a")
    assert read_pair(certificate, key) == (key.read_bytes(), certificate.read_bytes())


def test_a_certificate_needs_nobody_who_signed_it(tmp_path: Path) -> None:
    """Callers bring the authority; the server has its own certificate alone."""
    read_pair(*make_pair(tmp_path / "a", issuer=make_pair(tmp_path / "authority")))


def test_a_chain_is_judged_by_its_first_certificate(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path / "a")
    old, _ = make_pair(tmp_path / "old", years=(2020, 2021))
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate.read_bytes() + old.read_bytes())
    assert read_pair(chain, key) == (key.read_bytes(), chain.read_bytes())


def test_another_certificates_key(tmp_path: Path) -> None:
    (certificate, _), (_, key) = make_pair(tmp_path / "a"), make_pair(tmp_path / "b")
    assert refusal(certificate, key) == ("tls_key", "tls_key does not belong to tls_cert")


@pytest.mark.parametrize(("years", "said"), [((2020, 2021), "has expired"), ((2048, 2049), "not yet valid")])
def test_a_certificate_out_of_its_time(tmp_path: Path, years: tuple[int, int], said: str) -> None:
    field, message = refusal(*make_pair(tmp_path / "a", years=years))
    assert field == "tls_cert"
    assert said in message


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path / "a")
    text, encrypted = tmp_path / "text", tmp_path / "encrypted"
    text.write_text("no PEM")
    subprocess.run(["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", encrypted], check=True, capture_output=True)
    assert refusal(text, key)[0] == "tls_cert"
    assert refusal(key, key)[0] == "tls_cert"
    assert refusal(certificate, text)[0] == refusal(certificate, certificate)[0] == "tls_key"
    assert refusal(certificate, encrypted) == ("tls_key", "tls_key holds no PEM private key without a passphrase")
    assert refusal(tmp_path / "nothing", key)[0] == "tls_cert"
    assert refusal(certificate, tmp_path / "nothing")[0] == "tls_key"


async def test_a_server_with_a_bad_pair_does_not_blame_its_address(tmp_path: Path) -> None:
    """gRPC says no more than that it cannot listen, which was told as an address in use."""
    (certificate, own_key), (_, key) = make_pair(tmp_path / "a"), make_pair(tmp_path / "b")
    server = grpc.aio.server()
    with pytest.raises(InvalidArgument, match="tls_key"):
        bind(server, load_config({"port": 0, "tls_cert": certificate, "tls_key": key}))
    assert bind(server, load_config({"port": 0, "tls_cert": certificate, "tls_key": own_key})) > 0
    await server.stop(0)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), "WRONG_VERSION_NUMBER"),  # how a gRPC client without TLS begins
        (b"GET / HTTP/1.1\r\nHost: polyhead\r\n\r\n", "HTTP_REQUEST"),
    ],
)
async def test_a_caller_without_tls_is_one_line_of_grpcs_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sent: bytes, said: str
) -> None:
    """No Python of ours sees such a connection; docs/operations.md says what the line means."""
    certificate, key = make_pair(tmp_path / "a")
    server = grpc.aio.server(options=SERVER_OPTIONS)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([read_pair(certificate, key)]))
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert b"HTTP/2" not in await reader.read(), "closed without an answer in clear"
        writer.close()
    finally:
        await server.stop(None)
    lines = [line for line in capfd.readouterr().err.splitlines() if "Handshake failed" in line]
    assert [said in line for line in lines] == [True]
    pages = Path(__file__).parents[3] / "docs" / "operations.md"
    assert f"| `{said}` |" in pages.read_text(encoding="utf-8")
