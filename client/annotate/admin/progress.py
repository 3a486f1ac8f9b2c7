"""How far a project is, by item, person and hour, and what of it does not count, by reason."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from polyhead.client.annotate.admin.tables import Cell, Share, Table, Word
from polyhead.client.annotate.exports.comparable import all_judgements
from polyhead.client.annotate.exports.formats import FORMATS
from polyhead.client.annotate.items.storing import IS_THERE
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.storage.database import Database

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_FORMAT = {Kind.PROBE: "rules", Kind.RULECHECK: "rules", Kind.DEMONSTRATE: "polyhead-sft", Kind.EDIT: "polyhead-sft"}


def progress(db: Database, slug: str, round_number: int = 0) -> list[Table]:
    """Round 0: all rounds."""
    project = projects.find_project(db, slug)
    return [
        _counts(db, project.id, round_number),
        _left_out(db, slug, round_number),
        _items(db, project.id, round_number),
        _people(db, project.id, round_number),
        _hours(db, project.id, round_number),
    ]


def _counts(db: Database, project_id: str, round_number: int) -> Table:
    """Answers, how many are still to come, and when they will have come at the pace of the last day."""
    done = db.value(f"SELECT count(*) {_ANSWERS} AND n.state = 'current'", project_id, round_number)
    today = db.value(
        f"SELECT count(*) {_ANSWERS} AND n.state = 'current' AND n.received_at > ?", project_id, round_number, db.now() - _DAY_MS
    )
    wanted = db.value(
        "SELECT coalesce(sum(max(0, i.overlap - (SELECT count(*) FROM assignments a WHERE a.item_id = i.id AND a.state = 'submitted'))), 0)"
        f" {_ITEMS} AND i.state = 'open' AND i.source != 'annotator' AND i.gold_kind IS NULL",
        project_id, round_number,
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [Word("admin.row.answers"), done],
        [Word("admin.row.answers_day"), today],
        [Word("admin.row.wanted"), wanted],
        [Word("admin.row.days_left"), f"{wanted / today:.1f}" if today and wanted else "0" if not wanted else "–"],
        [Word("admin.row.open_reports"), db.value(_REPORTS, project_id, round_number)],
    ]
    return Table("progress", ("measure", "count"), rows)


def _left_out(db: Database, slug: str, round_number: int) -> Table:
    """Every answer that is stored and yields no row for a trainer: nothing is dropped in silence."""
    found, reasons = all_judgements(db, slug, round_number)
    counted = Counter(reasons)
    name = _FORMAT.get(found[0].kind, "polyhead-pairs") if found else "polyhead-pairs"
    num_rows = sum(1 for judgement in found for _ in FORMATS[name](judgement, counted))
    rows: list[list[Cell]] = [[Word("admin.row.used"), len(found) + sum(reasons.values()) - sum(counted.values())]]
    rows += [[_reason(reason), count] for reason, count in sorted(counted.items())]
    return Table("left_out", ("reason", "count"), rows, {"format": name, "rows": num_rows})


def _reason(reason: str) -> Word:
    return Word(f"admin.left_out.{reason.replace(' ', '_')}")


def _items(db: Database, project_id: str, round_number: int) -> Table:
    rows = db.all(
        "SELECT r.number, i.source, ifnull(i.gold_kind, '') AS gold, count(*) AS items, sum(i.state = 'retired') AS retired,"
        " sum((SELECT count(*) FROM assignments a WHERE a.item_id = i.id AND a.state = 'submitted') >= i.overlap) AS complete,"
        " sum(EXISTS (SELECT 1 FROM assignments a WHERE a.item_id = i.id AND a.state = 'leased')) AS under_way"
        f" {_ITEMS} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        project_id, round_number,
    )  # fmt: skip
    cells: list[list[Cell]] = [
        [row.number, Word(f"admin.source.{row.gold or row.source}"), row.items, row.complete, row.under_way, row.retired] for row in rows
    ]
    return Table("items", ("round", "source", "items", "complete", "under_way", "retired"), cells)


def _people(db: Database, project_id: str, round_number: int) -> Table:
    rows = db.all(
        "SELECT p.pseudonym, sum(n.state = 'current') AS answers, sum(n.state = 'withdrawn') AS withdrawn, max(n.received_at) AS last,"
        f" sum(g.is_passed) AS passed, count(g.answer_id) AS gold {_ANSWERS.replace('WHERE', _GOLD)} GROUP BY p.id ORDER BY answers DESC",
        project_id, round_number,
    )  # fmt: skip
    cells: list[list[Cell]] = [
        [row.pseudonym, row.answers, row.withdrawn, Share(row.passed or 0, row.gold), _time(row.last)] for row in rows
    ]
    return Table("by_person", ("person", "answers", "withdrawn", "gold", "last"), cells)


def _hours(db: Database, project_id: str, round_number: int) -> Table:
    """Of the last day, in UTC."""
    rows = db.all(
        f"SELECT n.received_at / {_HOUR_MS} AS hour, count(*) AS answers, count(DISTINCT p.id) AS people {_ANSWERS}"
        " AND n.state = 'current' AND n.received_at > ? GROUP BY 1 ORDER BY 1 DESC",
        project_id, round_number, db.now() - _DAY_MS,
    )  # fmt: skip
    return Table("by_hour", ("hour", "answers", "people"), [[_time(row.hour * _HOUR_MS), row.answers, row.people] for row in rows])


def _time(at: int) -> str:
    return f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M}"


_ANSWERS = (
    "FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN accounts p ON p.id = a.account_id JOIN items i ON i.id = a.item_id"
    " JOIN rounds r ON r.id = i.round_id WHERE r.project_id = ? AND ? IN (0, r.number)"
)
_GOLD = "LEFT JOIN gold_results g ON g.answer_id = n.id WHERE"
_ITEMS = f"FROM items i JOIN rounds r ON r.id = i.round_id WHERE r.project_id = ? AND ? IN (0, r.number) AND {IS_THERE}"
_REPORTS = f"SELECT count(*) FROM reports o JOIN items i ON i.id = o.item_id {_ITEMS.removeprefix('FROM items i ')} AND o.state = 'open'"
