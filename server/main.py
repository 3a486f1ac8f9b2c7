"""`polyhead serve`: flags in, exit status out. Heavy modules are imported after the configuration has been checked."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from polyhead.heads.format.errors import PolyheadError, ResourceExhausted
from polyhead.server import flags, logs
from polyhead.server.config import ServeConfig, load_config
from polyhead.server.host.memory import bound_malloc
from polyhead.server.host.pacing import bound_spinning
from polyhead.server.process.start_errors import explained

if TYPE_CHECKING:
    from polyhead.server.process.card import Addresses
    from polyhead.server.process.loading import Progress
    from polyhead.server.process.services import Services

EXIT_CONFIGURATION = 2  # it cannot start as configured: a restart would fail, too
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: memory, disk or descriptors are short now; a supervisor should start it again


def register(app: typer.Typer) -> None:
    """Add the `serve` command."""
    app.command("serve")(serve)


def serve(config: Path | None, json_ready: bool, **settings: Any) -> None:
    """Serve a trunk and its heads over gRPC."""
    try:
        loaded = load_config(flags.given(settings), config)
        logs.configure(loaded.log_format, loaded.log_level)
        start(loaded, json_ready=json_ready)
    except PolyheadError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(EXIT_TRY_AGAIN if isinstance(error, ResourceExhausted) else EXIT_CONFIGURATION) from None
    except MemoryError:
        typer.echo("error: no memory to load the model\nhint: give the process more, or serve a smaller model", err=True)
        raise typer.Exit(EXIT_TRY_AGAIN) from None


def _signature() -> inspect.Signature:
    """What typer reads: flags of this command alone, then one for each setting."""
    config: Any = typer.Option(None, "--config", help="TOML file with any of the settings.")
    json_ready: Any = typer.Option(False, "--json-ready", help="One JSON line on stdout instead of the card.")
    return inspect.Signature(
        [
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=config, annotation=Path),
            *flags.parameters(),
            inspect.Parameter("json_ready", inspect.Parameter.KEYWORD_ONLY, default=json_ready, annotation=bool),
        ]
    )


serve.__signature__ = _signature()  # type: ignore[attr-defined]


def start(config: ServeConfig, *, json_ready: bool = False) -> None:
    """Serve until a signal. PolyheadError if it cannot start."""
    bound_malloc()
    bound_spinning()
    if not config.model or Path(config.model).expanduser().is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: a local folder needs no network
    from polyhead.server.process import card, lifecycle

    has_started = False

    def announce(services: Services, addresses: Addresses) -> None:
        nonlocal has_started
        has_started = True
        text = card.ready_line(services, addresses) if json_ready else card.card(services, addresses)
        print(text, flush=True)

    try:
        asyncio.run(lifecycle.run(config, _progress(), announce))
    except OSError as error:
        if has_started:
            raise
        logging.getLogger("polyhead.server").debug("the start failed", exc_info=True)
        raise explained(error) from None


def _progress() -> Progress:
    """A line a step: in grey on a terminal, else a log line."""
    if not sys.stderr.isatty():
        return logging.getLogger("polyhead.server").info
    from rich.console import Console

    console = Console(stderr=True)
    return lambda text: console.print(f"[dim]… {text}[/dim]")
