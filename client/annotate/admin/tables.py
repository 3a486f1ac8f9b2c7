"""Tables as the admin's pages and their CSV files show them. Texts are keys of the catalogs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from polyhead.client.annotate.statistics.intervals import TOO_FEW, Interval, wilson

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Word:
    """A text of the catalogs."""

    key: str


@dataclass(frozen=True)
class Link:
    text: str
    address: str


@dataclass(frozen=True)
class Share:
    """So many of so many. `least`: of fewer than that no share is shown, but their number."""

    count: int
    total: int
    least: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number that may not be defined, its interval, and how many values it rests on. `digits` after the point. `least`: as of a share."""

    value: float | None
    interval: Interval | None = None
    total: int | None = None
    digits: int = 2
    least: int = 0


Cell = str | int | float | Word | Link | Share | Estimate | None
Words = Callable[[str], str]


@dataclass(frozen=True)
class Table:
    """`name` is a key: `admin.table.NAME` is its title, `admin.note.NAME` or `admin.note.NOTE` its explanation. Columns are keys
    `admin.column.COLUMN`."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    values: dict[str, object] = field(default_factory=dict)  # of the explanation's {places}
    note: str = ""


def shown(cell: Cell, words: Words) -> str:
    """A cell as people read it. A share or a coefficient of few values says so."""
    if isinstance(cell, Word):
        return words(cell.key)
    if isinstance(cell, Link):
        return cell.text
    if isinstance(cell, Share):
        return _share(cell, words)
    if isinstance(cell, Estimate):
        return _estimate(cell, words)
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return "" if cell is None else str(cell)


def to_csv(table: Table, words: Words) -> str:
    """With the columns' names as written in the code. A cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _columns(table, column)])
    for row in table.rows:
        writer.writerow(
            [_safe(value) for column, cell in zip(table.columns, row, strict=True) for value in _values(table, column, cell, words)]
        )
    return out.getvalue()


def _share(share: Share, words: Words) -> str:
    interval = wilson(share.count, share.total)
    if interval is None:
        return "–"
    if share.total < share.least:
        return f"–, n = {share.total} ({words('admin.too_few')})"
    few = f" ({words('admin.too_few')})" if share.total < TOO_FEW else ""
    bounds = f"{interval.low:.0%}–{interval.high:.0%}"
    return f"{share.count / share.total:.0%} [{bounds}], n = {share.total}{few}"


def _estimate(estimate: Estimate, words: Words) -> str:
    if estimate.total is not None and estimate.total < estimate.least:
        return f"–, n = {estimate.total} ({words('admin.too_few')})" if estimate.total else "–"
    if estimate.value is None:
        return words("admin.not_defined") + ("" if estimate.total is None else f", n = {estimate.total}")
    text = f"{estimate.value:.{estimate.digits}f}"
    if estimate.interval is not None:
        text += f" [{estimate.interval.low:.{estimate.digits}f}, {estimate.interval.high:.{estimate.digits}f}]"
    if estimate.total is not None:
        text += f", n = {estimate.total}" + (f" ({words('admin.too_few')})" if estimate.total < TOO_FEW else "")
    return text


def _is_split(table: Table, column: str) -> str:
    """What the cells of a column hold, where a file needs several columns for it."""
    place = list(table.columns).index(column)
    kinds = {type(row[place]) for row in table.rows}
    return "share" if Share in kinds else "estimate" if Estimate in kinds else ""


def _columns(table: Table, column: str) -> list[str]:
    parts = {"share": ("count", "total"), "estimate": ("value", "low", "high", "total")}.get(_is_split(table, column))
    return [f"{column}_{part}" for part in parts] if parts else [column]


def _values(table: Table, column: str, cell: Cell, words: Words) -> list[str]:
    kind = _is_split(table, column)
    if kind == "share":
        return [str(cell.count), str(cell.total)] if isinstance(cell, Share) else ["", ""]
    if kind == "estimate":
        if not isinstance(cell, Estimate):
            return [""] * 4
        bounds = [cell.interval.low, cell.interval.high] if cell.interval else [None, None]
        return ["" if each is None else repr(each) for each in (cell.value, *bounds, cell.total)]
    return [shown(cell, words)]


def _safe(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) and not _is_number(value) else value


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
