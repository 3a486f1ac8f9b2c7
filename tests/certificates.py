"""A key and its own certificate for localhost, 127.0.0.1 and polyhead, good for a hundred years and for tests alone: nobody trusts it."""

from __future__ import annotations

from pathlib import Path

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBcTCCARegAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOEfyfYf8mqBnlnh
aGdL0gd0AXD1NGsfMD1bPmgOSxoCeKWyybDDddEpiVNhTmKLTKdaHK8i6aBl3hIo
hvlL4DajWDBWMCQGA1UdEQQdMBuCCWxvY2FsaG9zdIIIcG9seWhlYWSHBH8AAAEw
DwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4EFgQUlQoEtArYt7Pyp7bowjNp/xGlTs4w
CgYIKoZIzj0EAwIDSAAwRQIgDbmZ3Pur1w7DzI5FdTV5FvkCmG6kAaSL3NDlk9zK
UiECIQCOksy9u+/CrOF56FAK+zXFUMfkTMwLG0axJzEb3w0krA==
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHXFQNQcjWawmvEQy
VvYbPPZrk6CC6s77P7qa32rj51ahRANCAAThH8n2H/JqgZ5Z4WhnS9IHdAFw9TRr
HzA9Wz5oDksaAnilssmww3XRKYlTYU5ii0ynWhyvIumgZd4SKIb5S+A2
-----END PRIVATE KEY-----
"""


def write_pair(folder: Path, cert: str = "tls.crt", key: str = "tls.key") -> tuple[Path, Path]:
    """Certificate and key as files, the key for its owner alone."""
    files = folder / cert, folder / key
    for file, text in zip(files, (CERTIFICATE, KEY), strict=True):
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)
    return files
