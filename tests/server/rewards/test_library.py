"""Configurations that are added while a server runs: checked, durable, found at once, never changed, and retired for good."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyhead.heads.format.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from polyhead.heads.store import failpoints
from polyhead.heads.store.io_errors import StoreIoError
from polyhead.heads.store.store import HeadStore
from polyhead.server.ood.store import OodStore
from polyhead.server.rewards import configuration_store
from polyhead.server.rewards.configuration_store import ConfigurationStore
from polyhead.server.rewards.configurations import ConfigurationKind
from polyhead.server.rewards.library import Library
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rewards.rules import RuleBook
from tests.e2e.forked import ForkedLibrary
from tests.heads.store.store_support import blob, manifest
from tests.server.ood.test_ood_store import make_fit, make_model
from tests.server.rewards.test_rules import Words

TRUNK = "ab" * 32
RECIPE = "id: terse\nversion: 1\nform: sum\nparts:\n  tokens: {read: tokens, coefficient: -1.0}\n"
RULES = "id: ours\nversion: 3\nrules:\n  - {id: be-brief, text: Be brief.}\n"
TEMPLATE = 'id: short\nversion: 1\ntemplate: "{dialogue} broken? {rule}"\nanswers: {violated: " yes", followed: " no"}\n'


class World:
    """Books and the library over them, as a server has them; `restarted` is the next server on the same store."""

    def __init__(self, heads: HeadStore) -> None:
        self.heads = heads
        self.rules, self.recipes, self.users = RuleBook(Words()), RecipeBook(), ["rule@3"]
        kinds = dict.fromkeys((ConfigurationKind.RULE_SET, ConfigurationKind.RULE_TEMPLATE), self.rules)
        self.store = ConfigurationStore(heads)
        self.library = Library(self.store, {**kinds, ConfigurationKind.RECIPE: self.recipes}, lambda kind, reference: self.users)

    def restarted(self) -> World:
        return World(self.heads)

    def added(self) -> list[str]:
        return sorted(each.reference for each in self.library.configurations() if each.is_added)


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        yield World(store)


def test_what_is_added_is_found_at_once_and_after_a_restart(world: World) -> None:
    """The next server finds the same, though nobody gave it the files; a head store with configurations opens as any other."""
    for content in (RECIPE, RULES, TEMPLATE):
        world.library.add(content, "", "")
    for each in (world, world.restarted()):
        assert each.added() == ["ours@3", "short@1", "terse@1"]
        assert each.recipes.find("terse", "f").constants == {"tokens": -1.0}
        assert each.rules.find_set("ours@3", "f").rules["be-brief"].text == "Be brief."
        assert each.rules.find_template("short", "f").answers == each.rules.answers["short@1"]
    listed = next(each for each in world.library.configurations() if each.reference == "terse@1")
    assert (listed.kind, listed.content, listed.is_added) == (ConfigurationKind.RECIPE, RECIPE, True)


def test_a_version_never_changes(world: World) -> None:
    """The same content again is the first one's answer; another one under the name and version is refused, shipped ones' too."""
    first = world.library.add(RECIPE, "", "")
    assert world.library.add(RECIPE, "", "") == first
    for content in (f"{RECIPE}# a comment\n", RECIPE.replace("terse", "sparrow")):
        with pytest.raises(AlreadyExists, match=r"@1 stands for another content.*\nhint: raise its version") as caught:
            world.library.add(content, "", "")
        assert caught.value.field == "content.version"
    assert world.library.add(RECIPE.replace("version: 1", "version: 2"), "", "").reference == "terse@2"


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        ("id: terse\n", "content.version", "the content: version is missing"),
        ("a: [", "content", "the content is not YAML in line 1"),
        ("id: x\nversion: 1\ncolour: red\n", "content", "of no known kind"),
        (RECIPE.replace("tokens,", "letters,"), "content.parts.tokens.read", "the content: parts.tokens.read"),
        (RULES.replace("text: Be brief.", "text: ''"), "content.rules[0].text", "must not be blank"),
        (TEMPLATE.replace("{rule}", ""), "content.template", "{rule} once each"),
        (TEMPLATE.replace(" yes", " maybe so"), "content", "short@1 does not fit this model's tokenizer"),
    ],
)
def test_a_bad_file_names_the_key_and_leaves_nothing(world: World, content: str, field: str, message: str) -> None:
    with pytest.raises((InvalidArgument, FailedPrecondition), match=re.escape(message)) as caught:
        world.library.add(content, "", "")
    assert caught.value.field == field
    assert world.added() == world.restarted().added() == []


def test_a_retired_version_is_gone_for_good(world: World) -> None:
    world.library.add(RECIPE, "", "")
    world.library.add(TEMPLATE, "", "")
    with pytest.raises(FailedPrecondition, match="short@1 is what rule@3 asks with"):
        world.library.retire(None, "short@1", "", "")
    world.users = []
    world.library.retire(None, "terse@1", "", "")
    world.library.retire(ConfigurationKind.RULE_TEMPLATE, "short@1", "", "")
    for each in (world, world.restarted()):
        assert each.added() == []
        with pytest.raises(NotFound):
            each.recipes.find("terse", "f")
        with pytest.raises(AlreadyExists, match="terse@1 was retired"):
            each.library.add(RECIPE, "", "")
        with pytest.raises(NotFound, match="no configuration of this name"):
            each.library.retire(None, "terse@1", "", "")
    assert "short@1" not in world.rules.answers


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("sparrow@1", FailedPrecondition, "was not added"),
        ("terse", InvalidArgument, "say which version: terse\nhint: terse@1"),
        ("nobody@1", NotFound, "no configuration"),
        ("../x@1", InvalidArgument, "not a valid name"),
    ],
)
def test_what_cannot_be_retired(world: World, reference: str, error: type[Exception], message: str) -> None:
    world.library.add(RECIPE, "", "")
    with pytest.raises(error, match=message):
        world.library.retire(None, reference, "", "")
    assert world.added() == ["terse@1"]


def test_a_request_id_stands_for_one_request(world: World) -> None:
    """The same request again gets the first answer, after a restart and after what it added was retired, too."""
    world.users = []
    first = world.library.add(RECIPE, "a", "digest a")
    world.library.retire(None, "terse@1", "r", "digest r")
    for each in (world, world.restarted()):
        assert each.library.add(RECIPE, "a", "digest a").sha256 == first.sha256
        assert each.library.retire(None, "terse@1", "r", "digest r").reference == "terse@1"
        for request_id, did in (("a", "added"), ("r", "retired")):
            with pytest.raises(AlreadyExists, match=f"the request id was used for another request: it {did} terse@1") as caught:
                each.library.add(RULES, request_id, "another digest")
            assert caught.value.field == "request_id"
        assert each.added() == []


def test_a_request_id_stands_for_one_request_of_all_that_is_stored(world: World) -> None:
    """Ids of configurations were looked for among configurations alone: a push and a recipe could share one."""
    data = blob("policy 1")
    with world.heads.begin_push(len(data), hashlib.sha256(data).hexdigest()) as staging:
        staging.write(data)
        digest = staging.finish()
    world.heads.add_version("policy", digest, manifest(), request_id="push", request_digest="digest of a push")
    world.heads.commit_generation({"policy": 1}, parent=None, request_id="activation", request_digest="digest of an activation")
    fits = OodStore(world.heads, keep_versions=3)
    fits.add(make_fit(request_id="fit", request_digest="digest of a fit"), make_model())
    world.library.add(RECIPE, "recipe", "digest of a recipe")
    for request_id, did in (("push", "made policy@1"), ("activation", "made generation 1"), ("fit", "made helpful@1")):
        with pytest.raises(AlreadyExists, match=f"the request id was used for another request: it {did}"):
            world.library.add(RULES, request_id, "another digest")
        with pytest.raises(AlreadyExists, match=f"it {did}"):
            world.library.retire(None, "terse@1", request_id, "another digest")
    for ask in (world.heads.check_request, fits.find_request):
        with pytest.raises(AlreadyExists, match="the request id was used for another request: it added terse@1"):
            ask("recipe", "another digest")
    assert world.added() == ["terse@1"]


# What a kill may leave: the steps in their order, and what is in use after each.
STEPS = [("add", RECIPE), ("add", RULES), ("add", TEMPLATE), ("retire", "terse@1")]
IN_USE = [[], ["terse@1"], ["ours@3", "terse@1"], ["ours@3", "short@1", "terse@1"], ["ours@3", "short@1"]]
MKDIR, PUT = failpoints.CONFIGURATION[:2], failpoints.CONFIGURATION[2:]


@pytest.mark.parametrize(("name", "visit"), [*((name, 1) for name in MKDIR), *((name, visit) for name in PUT for visit in (1, 2, 4, 7))])
def test_a_kill_leaves_whole_configurations(tmp_path: Path, name: str, visit: int) -> None:
    """kill -9 at every step: what was acknowledged is there, nothing is half there, and the lost request can be repeated."""
    command = [sys.executable, "-m", "tests.server.rewards.library_child", str(tmp_path / "store")]
    with ForkedLibrary(command, env={**os.environ, "POLYHEAD_FP": f"{name}:kill@{visit}"}, text=True) as child:
        said, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors
    done = said.count("ack")
    assert done < len(STEPS)
    with HeadStore.open(tmp_path / "store", TRUNK) as heads:
        world = World(heads)
        world.users = []
        assert world.added() in IN_USE[done : done + 2]
        for stored in world.store.in_use():
            assert world.store.content(stored).decode() in {content for _, content in STEPS}
        for number in range(done, len(STEPS)):
            take(world, number)
        assert world.added() == world.restarted().added() == IN_USE[-1]


def take(world: World, number: int) -> None:
    """One of STEPS, under an id of its own."""
    action, what = STEPS[number]
    if action == "add":
        world.library.add(what, f"request {number}", f"digest {number}")
    else:
        world.library.retire(None, what, f"request {number}", f"digest {number}")


def test_two_clients_at_once(world: World) -> None:
    """One of many contents for a version wins, and all who sent it agree; different files do not meet."""
    same = [f"{RECIPE}# {index % 2}\n" for index in range(8)]
    others = [RECIPE.replace("terse", f"own{index}") for index in range(8)]

    def add(content: str) -> str:
        try:
            return world.library.add(content, "", "").sha256
        except AlreadyExists:
            return ""

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(add, same + others))
    assert len(set(found[:8]) - {""}) == 1
    assert found[:8].count("") == 4
    assert all(found[8:])
    assert world.restarted().added() == sorted(["terse@1", *(f"own{index}@1" for index in range(8))])


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", failpoints.CONFIGURATION)
def test_a_failing_disk_leaves_no_half_configuration(world: World, name: str, error: str) -> None:
    """Whatever step fails: the error says so, no request finds it, a restart neither, and the next try works."""
    failpoints.arm(name, error)
    with pytest.raises((StoreIoError, ResourceExhausted), match="could not store the configuration"):
        world.library.add(RECIPE, "a", "digest")
    assert not failpoints.is_armed()
    assert world.added() == world.restarted().added() == []
    world.library.add(RECIPE, "a", "digest")
    assert world.restarted().added() == ["terse@1"]


def test_the_content_is_durable_before_the_record_that_makes_it_a_version(tmp_path: Path) -> None:
    record: list[tuple[str, str]] = []
    with HeadStore.open(tmp_path / "store", TRUNK, os_record=record) as heads:
        world, start = World(heads), len(record)
        world.library.add(RECIPE, "", "")
    changes = [(op, re.sub(r"staging/.*", "staging/*", name)) for op, name in record[start:] if op not in ("open", "write")]
    file = "configurations/recipe--terse@1"
    put = [[("fsync", "staging/*"), ("rename", f"{file}.{suffix}"), ("fsync_folder", "configurations")] for suffix in ("yaml", "json")]
    assert changes == [("mkdir", "configurations"), ("fsync_folder", ""), *put[0], *put[1]]


def test_damage_is_no_reason_not_to_start(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A content or a record that was changed on the disk is left out with a warning, and its version is not given again."""
    world.library.add(RECIPE, "", "")
    world.library.add(RULES, "", "")
    folder = tmp_path / "store" / "configurations"
    (folder / "recipe--terse@1.yaml").write_text("changed")
    (folder / "rule_set--ours@3.json").write_text("{}")
    (folder / "recipe--half@1.yaml").write_text(RECIPE)  # its record was never written
    again = world.restarted()
    assert again.added() == []
    assert "terse@1 is not in use: the stored content is damaged" in caplog.text
    assert "record of a stored configuration is damaged: rule_set ours@3" in caplog.text
    assert not (folder / "recipe--half@1.yaml").exists()
    with pytest.raises(AlreadyExists, match="ours@3 has a damaged record"):
        again.library.add(RULES, "", "")
    with pytest.raises(DataLoss):
        again.store.content(again.store.in_use()[0])


def test_a_file_of_the_start_may_not_be_another_one(world: World) -> None:
    """An answer that names terse@1 would mean two things."""
    world.library.add(RECIPE, "", "")
    other = World.__new__(World)
    other.recipes = RecipeBook()
    file = world.recipes.find("terse@1", "f").file
    other.recipes.add(type(file)(file.name, file.field, file.reference, "00" * 32, file.content, file.values), None)
    with pytest.raises(FailedPrecondition, match="terse@1 was added with another content than the file of this start has"):
        Library(ConfigurationStore(world.heads), {ConfigurationKind.RECIPE: other.recipes}, lambda kind, reference: [])


@pytest.mark.parametrize("is_retired", [False, True])
def test_what_the_primary_stores_takes_the_place_of_what_a_follower_has(world: World, tmp_path: Path, is_retired: bool) -> None:
    """An old primary had acknowledged a version that was not copied. The new primary's content was ignored, and the old one stayed."""
    other = RECIPE.replace("-1.0", "-9.0")
    world.library.add(RECIPE, "a", "digest a")
    if is_retired:
        world.users = []
        world.library.retire(None, "terse@1", "", "")
    with HeadStore.open(tmp_path / "primary", TRUNK) as heads:
        primary = World(heads)
        primary.library.add(other, "b", "digest b")
        stored = primary.store.in_use()[0]
    world.library.adopt(stored, other.encode())
    world.library.adopt(stored, other.encode())
    for each in (world, world.restarted()):
        assert each.recipes.find("terse@1", "f").constants == {"tokens": -9.0}
        assert each.store.all() == [stored]


def test_there_is_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration_store, "MAX_BYTES", len(RECIPE) + 10)
    world.library.add(RECIPE, "", "")
    with pytest.raises(ResourceExhausted, match="hint: retire some"):
        world.library.add(RULES, "", "")
    monkeypatch.setattr(configuration_store, "MAX_STORED", 1)
    with pytest.raises(ResourceExhausted, match="no more can be added"):
        world.library.add(RULES, "", "")
