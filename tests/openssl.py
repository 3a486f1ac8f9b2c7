"""Certificates for the tests, signed by themselves or by one another, made by the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command makes the certificates")
_CA = """
[ca]
default_ca = own
[own]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
policy = policy
default_md = sha256
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
subjectAltName = {names}
basicConstraints = CA:{may_sign}
"""
Pair = tuple[Path, Path]  # certificate, key


def make_pair(folder: Path, names: str = "IP:127.0.0.1", years: tuple[int, int] = (2020, 2049), issuer: Pair | None = None) -> Pair:
    """Valid from the first of January of one year to that of the other; signed by `issuer`, or by itself."""
    folder.mkdir()
    (folder / "index").touch()
    (folder / "ca.cnf").write_text(_CA.format(folder=folder, names=names, may_sign=str(issuer is None).lower()))
    certificate, key, request = (folder / name for name in ("cert.pem", "key.pem", "request.pem"))
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    key.chmod(0o600)
    _openssl("req", "-new", "-key", key, "-subj", f"/CN={folder.name}", "-out", request)
    first, last = (f"{year}0101000000Z" for year in years)
    signer = ("-selfsign", "-keyfile", key) if issuer is None else ("-cert", issuer[0], "-keyfile", issuer[1])
    files = ("-config", folder / "ca.cnf", "-in", request, "-out", certificate)
    _openssl("ca", "-batch", "-notext", *signer, *files, "-startdate", first, "-enddate", last)
    return certificate, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
