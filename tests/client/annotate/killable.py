"""The application as a process of its own, on a scripted model: `python -m tests.client.annotate.killable DATABASE`. Prints its port."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvicorn

from polyhead.client.annotate.database import Database
from polyhead.client.annotate.web.announcing import AnnouncingServer
from polyhead.client.annotate.web.app import make_app
from tests.client.annotate.model import FakeModel


def main(path: Path) -> None:
    db = Database.open(path)
    db.lock()
    config = uvicorn.Config(make_app(db, FakeModel().client), host="127.0.0.1", port=0, log_level="critical")
    asyncio.run(AnnouncingServer(config, lambda port: print(port, flush=True)).serve())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
