"""Work that is carried through: its end is waited for, however often its caller goes away, and its failure is one line at most."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from polyhead.heads.format.errors import NotFound
from polyhead.server.process.workers import Workers, carried_through


@pytest.mark.parametrize(("error", "level"), [(NotFound("no such head"), logging.INFO), (ValueError("a defect"), logging.ERROR)])
async def test_a_failure_that_nobody_hears_is_one_line(error: Exception, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio wrote "Task exception was never retrieved" and a traceback for each refused label whose caller had a short deadline."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    workers, may_end = Workers(), threading.Event()

    def fail() -> None:
        may_end.wait(60)
        raise error

    call = asyncio.ensure_future(carried_through(workers.run_control(fail)))
    await asyncio.sleep(0)
    with caplog.at_level(logging.INFO):
        for _ in range(3):  # a deadline, and then the server's own end
            call.cancel()
            await asyncio.sleep(0)
        assert not call.done(), "it is waited for"
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        del call
        await asyncio.sleep(0)
    workers.close()
    assert complaints == []
    [line] = caplog.records
    assert (line.levelno, line.getMessage()) == (level, f"a change failed after its caller had gone: {type(error).__name__}")
