"""What Prometheus reads of the frontend: counts from the database at each scrape, requests as they are answered.

No person, no head, no text.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyhead.client.annotate.admin.rounds import closed_by_trunk
from polyhead.client.annotate.replies import scoring
from polyhead.client.annotate.storage.database import Database

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
PREFIX = "polyhead_annotate"


def watch(registry: CollectorRegistry, db: Database, is_up: Callable[[], bool], backup_dir: Path | None) -> Counted:
    """Fill a registry. What counts requests goes around the application. `is_up`: whether the model server answers."""
    ProcessCollector(registry=registry)
    registry.register(Stored(db, is_up, backup_dir))
    return Counted(registry)


class Counted:
    """Requests and their times. Streams of events are counted and not timed: they last as long as a reply is written."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(f"{PREFIX}_requests", "Requests answered, by HTTP status", ["code"], registry=registry)
        self._seconds = Histogram(
            f"{PREFIX}_request_seconds", "Seconds to answer, event streams left out", buckets=BUCKETS, registry=registry
        )

    def around(self, app: ASGIApp) -> ASGIApp:
        """The same application, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.monotonic()

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._requests.labels(str(message["status"])).inc()
                    if not scope["path"].endswith("/events"):
                        self._seconds.observe(time.monotonic() - began)
                await send(message)

            await app(scope, receive, noting)

        return counted


class Stored(Collector):
    """Counts from the database, on a connection of the scrape's own thread that only reads."""

    def __init__(self, db: Database, is_up: Callable[[], bool], backup_dir: Path | None) -> None:
        self._db, self._is_up, self._backup_dir = db, is_up, backup_dir

    def collect(self) -> Iterator[Metric]:
        reader = self._db.reader()
        try:
            yield from _counts(reader)
        finally:
            reader.close()
        yield _gauge("model_up", "1 while the model server answers", self._is_up())
        yield _gauge("database_bytes", "Size of the database file", self._db.path.stat().st_size)
        disk = shutil.disk_usage(self._db.path.parent)
        yield _gauge("disk_free_bytes", "Free on the database's disk", disk.free)
        yield _gauge("disk_size_bytes", "Size of the database's disk", disk.total)
        if self._backup_dir is not None:
            times = [path.stat().st_mtime for path in self._backup_dir.glob("annotate-*.db")]
            yield _gauge("backup_timestamp_seconds", "When the newest backup was made; 0: there is none", max(times, default=0.0))


def _counts(db: Database) -> Iterator[Metric]:
    answers = CounterMetricFamily(f"{PREFIX}_answers", "Answers stored, also those taken back since", labels=["project"])
    for row in db.all(
        "SELECT p.slug, (SELECT count(*) FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id"
        " JOIN rounds r ON r.id = i.round_id WHERE r.project_id = p.id) AS num FROM projects p"
    ):
        answers.add_metric([row.slug], row.num)
    yield answers
    failed = CounterMetricFamily(f"{PREFIX}_turns_failed", "Turns whose replies could not be drawn, by reason", labels=["reason"])
    for row in db.all("SELECT error_code, count(*) AS num FROM turns WHERE error_code != '' GROUP BY 1"):
        failed.add_metric([row.error_code], row.num)
    yield failed
    yield _gauge(
        "turns_under_way", "Turns whose replies are being drawn", db.value("SELECT count(*) FROM turns WHERE state = 'generating'")
    )
    yield _gauge("leases", "Tasks that somebody has before them", db.value("SELECT count(*) FROM assignments WHERE state = 'leased'"))
    yield _gauge("reports_open", "Reports that nobody has closed", db.value("SELECT count(*) FROM reports WHERE state = 'open'"))
    yield _gauge("written_unscored", "Replies that people wrote and that wait for scores of the hidden heads", scoring.count(db).num_open)
    yield _gauge("rounds_ended_by_trunk", "Open projects that wait for a new round on another trunk", len(closed_by_trunk(db)))
    people = GaugeMetricFamily(f"{PREFIX}_people", "Accounts, by state", labels=["state"])
    for row in db.all("SELECT state, count(*) AS num FROM accounts GROUP BY 1"):
        people.add_metric([row.state], row.num)
    yield people


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", meaning, value=float(value))
