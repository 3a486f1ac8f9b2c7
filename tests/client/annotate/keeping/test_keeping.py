"""The database is kept: copies while it is served, the tables from the log, checks that find what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead.client import errors
from polyhead.client.annotate.commands import annotate_app
from polyhead.client.annotate.keeping import backup, rebuild, verify
from polyhead.client.annotate.people import accounts, erasure
from polyhead.client.annotate.problems import Clash
from polyhead.client.annotate.replies.candidates import unpack_ids
from polyhead.client.annotate.storage.database import Database, DatabaseError
from polyhead.client.annotate.web.catalogs import NAMES, catalog
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, RunningSite, choice, running


async def work(site: RunningSite) -> None:
    """A dialogue with an answer, one taken back, a skip, a report: rows in most tables."""
    async with site.person(pseudonym="amber-fox-1") as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Why is the sky blue?")
        view = (await person.state())["turns"][0]["view"]
        stored = await person.answer(assignment, turn, choice(view))
        await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {})
        await person.answer(assignment, turn, choice(view, 1, comment="Zanzibar"))
        await person.post("/api/reports", {"assignment_id": assignment, "text": "odd"})
        await person.post(f"/api/assignments/{assignment}/finish", {})
        await person.form("/p/helpful/leave")


@pytest.mark.parametrize("erased", ["", "identity", "all"])
async def test_the_tables_are_made_again_from_the_log(tmp_path: Path, erased: str) -> None:
    """Equal to those that are there, after an erasure, too; a row that was changed beside the log is found."""
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE + "queue: {replay_share: 1.0}\n") as site:
        await work(site)
        if erased:
            erasure.erase(site.db, erasure.find(site.db, "amber-fox-1").id, erased, "test")
        made = rebuild.rebuild(site.db, tmp_path / "b.db")
        assert rebuild.differences(site.db, made) == []
        assert made.value("SELECT count(*) FROM answers") == 2
        made.close()
        assert verify.problems(site.db) == []
        site.db.execute("UPDATE turns SET pasted_chars = 7")
        assert verify.problems(site.db) == ["turns: 1 rows differ from the log, 1 rows of the log are missing"]


async def test_damage_is_found(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE) as site:
        await work(site)
        site.db.execute("INSERT INTO erasures VALUES ('x', 'all', 'running', 0, 'test')")  # opens the triggers' door
        site.db.execute("UPDATE answers SET body_json = '{}' WHERE state = 'current'")
        found = verify.problems(site.db)
    assert found[0] == "answers whose body is not what was hashed: 1"
    assert found[1].startswith("answers: 1 rows differ")


async def test_a_backup_while_it_is_served_and_the_way_back(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with running(path, FakeModel(), CHOOSE) as site:
        site.db.lock()
        await work(site)
        made = backup.backup(site.db, tmp_path / "copy.db")
        assert made.last_seq == site.db.value("SELECT max(seq) FROM events")
        with pytest.raises(DatabaseError, match="there is a file already"):
            backup.backup(site.db, tmp_path / "copy.db")
        with pytest.raises(DatabaseError, match="another process serves"):
            backup.restore(tmp_path / "copy.db", path)
        erasure.erase(site.db, erasure.find(site.db, "amber-fox-1").id, "all", "test")
    assert b"Zanzibar" in (tmp_path / "copy.db").read_bytes()
    done = CliRunner().invoke(annotate_app, ["restore", str(tmp_path / "copy.db"), "--db", str(path)])
    assert "1 erasures were done again" in done.output, done.output
    assert b"Zanzibar" not in path.read_bytes()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    verified = CliRunner().invoke(annotate_app, ["verify", "--db", str(path)])
    assert "is sound" in verified.output, verified.output
    (tmp_path / "copy.db").write_bytes(b"x")
    with pytest.raises(DatabaseError, match="is not what copy"):
        backup.restore(tmp_path / "copy.db", path)


def erasable(path: Path) -> tuple[Database, str]:
    """(a database, an account in it), and beside it a backup of it, old.db."""
    db = Database.create(path)
    account, _ = accounts.create_account(db, "annotator", "amber-fox-1")
    backup.backup(db, path.with_name("old.db"))
    return db, account


def pseudonym_after_restore(path: Path) -> str:
    backup.restore(path.with_name("old.db"), path)
    with contextlib.closing(Database.open(path)) as restored:
        return str(restored.value("SELECT pseudonym FROM accounts"))


def test_an_erasure_is_on_the_list_before_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list was written last: after a full disk the database said "done", and a backup brought the person back."""

    def full(_: Database) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    db, account = erasable(tmp_path / "a.db")
    with monkeypatch.context() as patched:
        patched.setattr(Database, "compact", full)
        with pytest.raises(sqlite3.OperationalError):
            erasure.erase(db, account, "identity", "test")
    db.close()
    assert account in erasure.list_path(tmp_path / "a.db").read_text(encoding="utf-8")
    assert pseudonym_after_restore(tmp_path / "a.db").startswith("erased-")


@pytest.mark.parametrize("left", ["", '{"account_id":'])
def test_erasures_that_only_the_replaced_file_knows_of_are_done_again(tmp_path: Path, left: str) -> None:
    """The list is gone, or lost power has cut its line short. It is whole afterwards."""
    db, account = erasable(tmp_path / "a.db")
    erasure.erase(db, account, "identity", "test")
    db.close()
    known = erasure.list_path(tmp_path / "a.db")
    whole = known.read_text(encoding="utf-8")
    known.write_text(left, encoding="utf-8")
    assert pseudonym_after_restore(tmp_path / "a.db").startswith("erased-")
    assert known.read_text(encoding="utf-8").splitlines() == [*([left] if left else []), *whole.splitlines()]


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    """That is what backups are for. Its erasures are on the list."""
    db, account = erasable(tmp_path / "a.db")
    erasure.erase(db, account, "identity", "test")
    db.close()
    (tmp_path / "a.db").write_bytes(b"no database" * 1000)
    assert pseudonym_after_restore(tmp_path / "a.db").startswith("erased-")
    assert (tmp_path / "a.db.before").read_bytes().startswith(b"no database")


def test_a_file_that_somebody_reads_is_not_wiped_and_that_is_said(tmp_path: Path) -> None:
    """The person is erased and on the list; the write-ahead log still holds the name, until the erasure is done again."""
    db, account = erasable(tmp_path / "a.db")
    db.execute("PRAGMA busy_timeout = 100")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        with pytest.raises(Clash, match="somebody else reads the database") as raised:
            erasure.erase(db, account, "identity", "test")
        assert (raised.value.name, b"amber-fox-1" in (tmp_path / "a.db-wal").read_bytes()) == ("STILL_READ", True)
        with pytest.raises(DatabaseError, match="somebody else reads"):
            backup.restore(tmp_path / "old.db", tmp_path / "a.db")
    assert erasure.list_path(tmp_path / "a.db").exists()
    assert all(catalog(locale).has("error.STILL_READ") for locale in NAMES)
    erasure.erase(db, account, "identity", "test")
    assert b"amber-fox-1" not in b"".join(each.read_bytes() for each in tmp_path.glob("a.db*"))
    db.close()


async def test_backups_an_hour_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at the start of the program; the newest 24 stay, and the last of each of 14 days."""
    names = [Path(f"annotate-202601{day:02}-{hour:02}0000.db") for day in range(1, 21) for hour in range(24)]
    stay = backup.kept(names)
    assert stay[-24:] == names[-24:]
    assert [each.name[15:20] for each in stay[:-24]] == [f"{day:02}-23" for day in range(7, 20)]
    copied = asyncio.Event()
    loop = asyncio.get_running_loop()

    def keep(db: Database, folder: Path) -> None:
        assert db.value("SELECT count(*) FROM projects") == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM sessions")
        loop.call_soon_threadsafe(copied.set)

    monkeypatch.setattr("polyhead.client.annotate.web.app.keep_backup", keep)
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE, backup_dir=tmp_path / "backups"):
        await asyncio.wait_for(copied.wait(), 20)


async def test_replies_are_drawn_again_from_their_rows(tmp_path: Path) -> None:
    """The same ids; another digest, other ids, and a version or trunk that is gone are told apart."""
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE) as site:
        await work(site)

        class Replaying:
            change: dict[str, Any] = {}  # noqa: RUF012  a fake

            async def trunk(self) -> Any:
                return await site.model.trunk()

            async def generate(self, prompts: Any, **options: Any) -> list[Any]:
                row = site.db.one("SELECT * FROM candidates WHERE sample_seed = ?", str(options["sample_seeds"][0]))
                assert row is not None
                assert (options["head"], options["temperature"]) == (f"{row.head_name}@313131", 0.5)
                assert prompts == [unpack_ids(row.prompt_token_ids)]
                if "error" in self.change:
                    raise self.change["error"]
                sample = site.model._sample(None, type("Arm", (), {"head": row.head_name}), 0, 0, 0, "x")
                return [dataclasses.replace(sample, **{"token_ids": unpack_ids(row.token_ids), **self.change})]

        model: Any = Replaying()

        async def outcomes() -> set[str]:
            return {each.outcome for each in await verify.replay(site.db, model, 3, random.Random(1))}

        assert await outcomes() == {"same"}
        for change, outcome in (
            ({"token_ids": [1]}, "different"),
            ({"digest": "x"}, "different"),
            ({"error": errors.NotFound("x")}, "gone"),
        ):
            model.change = change
            assert await outcomes() == {outcome}


def test_an_older_file_gets_the_indexes_that_it_lacks(tmp_path: Path) -> None:
    Database.create(tmp_path / "a.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as older:
        older.execute("DROP INDEX views_of_turn")
    opened = Database.open(tmp_path / "a.db")
    assert "views_of_turn" in str(opened.all("EXPLAIN QUERY PLAN SELECT * FROM views WHERE turn_id = 'x'")[0].detail)
    opened.close()
