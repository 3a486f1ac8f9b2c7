"""Configuration files: read strictly, found by name and version, listed in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument, NotFound
from polyhead.server.rewards.configurations import MAX_FILE_BYTES, Configuration, ConfigurationKind, find_newest, read_file
from polyhead.server.rpc.messages import configurations
from polyhead.v1 import scoring_pb2


@dataclass
class Shelf:
    """A book of files that nobody checked."""

    files: list[Configuration]

    def configurations(self) -> Iterator[Configuration]:
        yield from self.files


def configuration(reference: str, kind: ConfigurationKind = ConfigurationKind.RULE_SET, content: str = "") -> Configuration:
    return Configuration(kind, reference, "ab", content, (("a", "A."),) if kind is ConfigurationKind.RULE_SET else ())


def test_a_file_is_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# why\nid: x\nversion: 12\nmore: [1, é]\n", encoding="utf-8")
    file = read_file(path, "rules")
    assert (file.reference, file.values, file.content) == ("x@12", {"more": [1, "é"]}, path.read_text(encoding="utf-8"))
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        (b"id: x\nversion: 1\nid: y\n", "rules", "the key 'id' stands twice"),
        (b"id: x\nversion: 1\na: {b: 1, b: 2}\n", "rules", r"line 3: the key 'b' stands twice"),
        (b"id: x\n  version: [\n", "rules", "not YAML in line"),
        (b"\xff\xfe", "rules", "not UTF-8"),
        (b"- id\n- version\n", "rules", r"^x\.yaml: must be a mapping with id, version$"),
        (b"", "rules", "must be a mapping with id, version"),
        (b"id: x\n", "rules.version", r"^x\.yaml: version is missing$"),
        (b"id: 7\nversion: 1\n", "rules.id", r"^x\.yaml: id must be a text in quotes: 7$"),
        (b"id: A/b\nversion: 1\n", "rules.id", "id is not a valid name .*: 'A/b'$"),
        (b"id: x\nversion: '1'\n", "rules.version", "version must be a whole number: '1'"),
        (b"id: x\nversion: true\n", "rules.version", "whole number: True"),
        (b"id: x\nversion: 0\n", "rules.version", "must be at least 1: 0"),
        (b"id: x\nversion: 1000000000\n", "rules.version", "must be at most 999999999: 1000000000"),
        (b"#" * (MAX_FILE_BYTES + 1), "rules", "at most"),
        (b"x: !!python/object/apply:os.getcwd []\nid: x\nversion: 1\n", "rules", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: bytes, field: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=message) as caught:
        read_file(path, "rules")
    assert caught.value.field == field
    assert str(tmp_path) not in caught.value.message


def test_a_missing_file_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"cannot read no\.yaml: No such file"):
        read_file(tmp_path / "no.yaml", "rules")


def test_a_name_alone_means_the_highest_number(tmp_path: Path) -> None:
    known = {"x@2": "two", "x@10": "ten", "y@11": "other"}
    assert (find_newest(known, "x", "file", "f"), find_newest(known, "x@2", "file", "f")) == ("ten", "two")
    for reference in ("x@3", "z"):
        with pytest.raises(NotFound, match="no such file"):
            find_newest(known, reference, "file", "f")
    with pytest.raises(InvalidArgument):
        find_newest(known, "x@0", "file", "f")


def test_a_listing_is_by_kind_then_name_then_version() -> None:
    kinds = ConfigurationKind
    files = [configuration("s@1", kinds.TRANSCRIPT_FORMAT), configuration("b@10"), configuration("t@1", kinds.RULE_TEMPLATE)]
    books = [Shelf(files), Shelf([configuration("b@9"), configuration("r@1", kinds.RECIPE), configuration("a@2")])]
    everything = configurations.listing(scoring_pb2.ListConfigurationsRequest(), books)
    assert [each.reference for each in everything.configurations] == ["a@2", "b@9", "b@10", "t@1", "r@1", "s@1"]
    assert [rule.id for rule in everything.configurations[0].rules] == ["a"]
    recipes = scoring_pb2.ListConfigurationsRequest(kind=scoring_pb2.CONFIGURATION_KIND_RECIPE)
    assert [each.reference for each in configurations.listing(recipes, books).configurations] == ["r@1"]


def test_a_listing_that_fits_no_message_says_so() -> None:
    """Beyond 4 MiB the caller would get RESOURCE_EXHAUSTED from its own gRPC library."""
    files = [configuration(f"x@{number}", content="x" * MAX_FILE_BYTES) for number in range(1, 20)]
    with pytest.raises(FailedPrecondition, match="one kind at a time"):
        configurations.listing(scoring_pb2.ListConfigurationsRequest(), [Shelf(files)])
