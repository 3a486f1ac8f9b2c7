"""The server's certificate and key, checked before it listens.

gRPC starts with an expired certificate, and for a key of another certificate its error is that it cannot listen. Knows nothing of gRPC.
Errors name the setting at fault, never a path.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from polyhead.heads.format.errors import InvalidArgument


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Key and certificate chain, PEM both. Raises InvalidArgument if they are no pair, or if no caller would accept the certificate now."""
    pair = _read(key, "tls_key"), _read(certificate, "tls_cert")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(certificate)
    except ssl.SSLError:
        raise InvalidArgument("tls_cert holds no PEM certificate", field="tls_cert") from None
    try:
        server.load_cert_chain(certificate, key, password=lambda: "")  # an encrypted key fails instead of asking at the terminal
    except ssl.SSLError as error:
        raise _pair_error(error.reason) from None
    _check_handshake(server, client)
    return pair


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {field}: {error.strerror}", field=field) from None


def _pair_error(reason: str | None) -> InvalidArgument:
    match reason:
        case None | "PEM_LIB":
            return InvalidArgument("tls_key holds no PEM private key without a passphrase", field="tls_key")
        case "KEY_VALUES_MISMATCH":
            return InvalidArgument("tls_key does not belong to tls_cert", field="tls_key")
    return InvalidArgument(f"tls_cert cannot be used: {reason}", field="tls_cert")


def _check_handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A whole handshake in memory with a caller who trusts this very certificate: what fails here fails for every caller."""
    client.check_hostname = False  # callers check the name that they connect to
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    try:
        while sides:
            for side in list(sides):
                try:
                    side.do_handshake()
                    sides.remove(side)
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise InvalidArgument(f"no caller would accept tls_cert: {error.verify_message}", field="tls_cert") from None
    except ssl.SSLError as error:
        raise InvalidArgument(f"tls_cert and tls_key make no connection: {error.reason}", field="tls_cert") from None
