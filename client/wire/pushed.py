"""Which weights this client means by a version: it remembers the digests of its own pushes and names them when it activates.

Two servers behind one address may hold different weights under one number. Asking the second one for its digest would prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from polyhead.client.results.records import HeadVersion, PushReport

MOST = 4096  # versions that are remembered

Meant: TypeAlias = int | PushReport | HeadVersion  # a version number, or what says which weights it is to hold


class PushedDigests:
    """Digests by (name, version), the newest MOST."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, int], str] = {}

    def note(self, head: HeadVersion) -> None:
        """Remember a version that was pushed or copied."""
        if head.version and head.digest:
            self._digests[head.name, head.version] = head.digest
            if len(self._digests) > MOST:
                del self._digests[next(iter(self._digests))]

    def of(self, heads: Mapping[str, Meant]) -> tuple[dict[str, int], dict[str, str]]:
        """(version numbers, digests that are known) by name. Raises TypeError for anything else than numbers, reports and versions."""
        if not isinstance(heads, Mapping) or not all(isinstance(each, (int, PushReport, HeadVersion)) for each in heads.values()):
            raise TypeError('heads must map names to version numbers or push reports, such as {"policy": 7}')
        versions = {name: each if isinstance(each, int) else each.version for name, each in heads.items()}
        digests = {name: self._digest(name, each) for name, each in heads.items()}
        return versions, {name: digest for name, digest in digests.items() if digest}

    def _digest(self, name: str, meant: Meant) -> str:
        if isinstance(meant, int):
            return self._digests.get((name, meant), "")
        head = meant.head if isinstance(meant, PushReport) else meant
        if head.name != name:
            raise ValueError(f"{head.ref} is not a version of {name}")
        return head.digest
