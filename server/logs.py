"""Log lines, as text or JSON, with the request's id. Knows nothing of what is logged; callers log no prompt and no token."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("polyhead_request_id", default="")


def configure(log_format: str, level: str = "INFO") -> None:
    """Send the `polyhead` loggers to stderr as "text" or "json" lines; replaces what an earlier call has set."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger("polyhead")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"{line} [{current}]" if (current := request_id.get()) else line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, request_id, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        plain: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            plain["request_id"] = current
        if record.exc_info:
            plain["error"] = self.formatException(record.exc_info)
        return json.dumps(plain)
