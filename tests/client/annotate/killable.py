"""The application as a process of its own, on a scripted model. It is forked from a process that has imported everything: a start takes
a tenth of a second, and 200 of them a minute or less."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import uvicorn

from polyhead.client.annotate.storage.database import FAILPOINT_VARIABLE, Database
from polyhead.client.annotate.web.announcing import AnnouncingServer
from polyhead.client.annotate.web.app import make_app
from tests.client.annotate.model import FakeModel

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def start(path: Path, failpoint: str) -> tuple[BaseProcess, int]:
    """(the process, its port; 0 if it was killed before it listened). It kills itself at the failpoint, if it gets there."""
    reader, writer = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_serve, args=(path, failpoint, writer))
    process.start()
    writer.close()
    with reader:
        try:
            return process, reader.recv()
        except EOFError:
            return process, 0


def _serve(path: Path, failpoint: str, port: Connection) -> None:
    os.environ[FAILPOINT_VARIABLE] = failpoint
    db = Database.open(path)
    db.lock()
    config = uvicorn.Config(make_app(db, FakeModel().client), host="127.0.0.1", port=0, log_level="critical")
    asyncio.run(AnnouncingServer(config, port.send).serve())
