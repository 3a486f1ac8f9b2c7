"""Where a store keeps what: the one place that turns an id from outside into a path, after checking it. Opens nothing.

LOCK  STORE  RESERVE
staging/<random>                    what is not finished; emptied when a store is opened
blobs/<sha256>                      head.safetensors, named by its content
versions/<name>/<version>.json      one record each
versions/<name>/HIGHEST.json        the last number given out, once the version that had it was deleted
generations/<number>.json           the newest one is the active set
generations/PACK                    older ones in one file
ood/                                out-of-distribution fits, which the server keeps here; made with the first one
configurations/                     rules, templates, recipes and formats that were added while the server ran; likewise
"""

from __future__ import annotations

import re

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.manifest import check_name

LOCK = "LOCK"
STORE = "STORE"
RESERVE = "RESERVE"
BLOBS = "blobs"
VERSIONS = "versions"
GENERATIONS = "generations"
OOD = "ood"
CONFIGURATIONS = "configurations"
PACK = f"{GENERATIONS}/PACK"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBERED = re.compile(r"([1-9][0-9]{0,8})\.json")
MAX_NUMBER = 999_999_999


def blob_path(digest: str) -> str:
    """InvalidArgument unless `digest` is 64 lower-case hex digits."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"not a SHA-256 digest (64 lower-case hex digits): {digest[:80]!r}", field="digest")
    return f"{BLOBS}/{digest}"


def name_path(name: str) -> str:
    """The folder of one head name. InvalidArgument by the rule for head names."""
    check_name(name, "name")
    return f"{VERSIONS}/{name}"


def version_path(name: str, version: int) -> str:
    """InvalidArgument for a bad name or a number outside 1..999999999."""
    return f"{name_path(name)}/{_check_number(version, 'version')}.json"


def high_water_path(name: str) -> str:
    return f"{name_path(name)}/HIGHEST.json"


def generation_path(number: int) -> str:
    """InvalidArgument for a number outside 1..999999999."""
    return f"{GENERATIONS}/{_check_number(number, 'generation')}.json"


def parse_number(file_name: str) -> int | None:
    """The number in "7.json"; None for any other name."""
    match = _NUMBERED.fullmatch(file_name)
    return int(match.group(1)) if match else None


def _check_number(number: int, field: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_NUMBER:
        raise InvalidArgument(f"{field} must be a number from 1 to {MAX_NUMBER}: {str(number)[:40]}", field=field)
    return number
