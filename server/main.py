"""`polyhead serve`: flags in, exit status out. Heavy imports wait until the configuration is known to be good."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyhead.heads.format.errors import PolyheadError, ResourceExhausted
from polyhead.server import logs
from polyhead.server.config import ServeConfig, load_config
from polyhead.server.host.memory import bound_malloc
from polyhead.server.host.pacing import bound_spinning
from polyhead.server.process.start_errors import explained

if TYPE_CHECKING:
    from polyhead.server.process.card import Addresses
    from polyhead.server.process.services import Services
    from polyhead.server.process.startup import Progress

EXIT_CONFIGURATION = 2  # it cannot start as configured: more tries would not help
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL: memory, disk or descriptors are short now; whoever watches the process starts it again


def register(app: typer.Typer) -> None:
    """Add the `serve` command."""
    app.command("serve")(serve)


def serve(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub name. Default: the embedded SmolLM2-135M.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of the settings.")] = None,
    split_layer: Annotated[int | None, typer.Option(help="Layers in the trunk. Default: 80 % of them.")] = None,
    tap_layer: Annotated[int | None, typer.Option(help="Layer inside the trunk kept for OOD scores; 0: none.")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the heads. Default: in the user's state folder.")] = None,
    trunk_dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, int8, or fp8 on a GPU.")] = None,
    head_dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, int8, or fp8 on a GPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    deterministic: Annotated[bool | None, typer.Option("--deterministic", help="Promise the same bits, or do not start.")] = None,
    layers: Annotated[str | None, typer.Option(help="fast (default) or plain: transformers' own modules.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the engine's matrix products.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port. Default: 50051; 0 takes a free one.")] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Prometheus address, plain HTTP. Default: 127.0.0.1.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus port. Default: 9464; -1 means none.")] = None,
    cache_bytes: Annotated[int | None, typer.Option(help="Bytes for cached keys, values and states.")] = None,
    memory_budget: Annotated[int | None, typer.Option(help="Bytes for heads' weights.")] = None,
    max_context: Annotated[int | None, typer.Option(help="Most tokens of prompt and reply together.")] = None,
    keep_versions: Annotated[int | None, typer.Option(help="Versions kept of each head name. Default: 10.")] = None,
    drain_grace: Annotated[float | None, typer.Option(help="Seconds that running calls get at the end. Default: 45.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key, readable by its owner only.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="TOML file of bearer tokens by role.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Listen beyond loopback without TLS or tokens.")] = None,
    reflection: Annotated[bool | None, typer.Option("--reflection", help="Offer gRPC reflection.")] = None,
    rules: Annotated[list[Path] | None, typer.Option(help="More files of rules or rule templates.")] = None,
    formats: Annotated[list[Path] | None, typer.Option(help="More files of transcript formats.")] = None,
    recipes: Annotated[list[Path] | None, typer.Option(help="More files of reward recipes.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    json_ready: Annotated[bool, typer.Option("--json-ready", help="One JSON line on stdout instead of the card.")] = False,
) -> None:
    """Serve a trunk and its heads over gRPC."""
    flags = {key: value for key, value in locals().items() if key not in ("config", "json_ready")}
    flags["rules"] = tuple(rules) if rules else None
    flags["formats"] = tuple(formats) if formats else None
    flags["recipes"] = tuple(recipes) if recipes else None
    try:
        settings = load_config(flags, config)
        logs.configure(settings.log_format, settings.log_level)
        start(settings, json_ready=json_ready)
    except PolyheadError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(EXIT_TRY_AGAIN if isinstance(error, ResourceExhausted) else EXIT_CONFIGURATION) from None
    except MemoryError:
        typer.echo("error: no memory to load the model\nhint: give the process more, or serve a smaller model", err=True)
        raise typer.Exit(EXIT_TRY_AGAIN) from None


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
