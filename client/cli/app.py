"""All commands as one typer app.

`serve`, `annotate`, `bench` and `bench-gpu` are imported only when they are named, so that an install of the client alone works.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from polyhead.client.cli.chat import chat_command
from polyhead.client.cli.configurations import configurations_app
from polyhead.client.cli.fleet import fleet_command
from polyhead.client.cli.generate import generate_command, score_command
from polyhead.client.cli.heads.commands import heads_app
from polyhead.client.cli.ood import ood_app
from polyhead.client.cli.session import fail, readable_errors, require_torch
from polyhead.client.cli.status import health_command, status_command
from polyhead.client.cli.training.train import build_train_app

__all__ = ["build_app"]

_SERVER_HINT = "pip install 'polyhead[server]'"
_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True}


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The app for these arguments: the commands of optional parts are imported if the arguments name them, or no command."""
    app = typer.Typer(
        name="polyhead",
        help="One frozen trunk, many swappable heads: generation and scoring over gRPC.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    _add_optional(app, arguments, "serve", lambda: importlib.import_module("polyhead.server.main"), _serve_missing)
    app.command("status")(status_command)
    app.command("health")(health_command)
    app.command("fleet")(fleet_command)
    app.command("chat")(chat_command)
    app.command("generate")(generate_command)
    app.command("score")(score_command)
    app.add_typer(configurations_app, name="configurations")
    app.add_typer(heads_app, name="heads")
    app.add_typer(ood_app, name="ood")
    app.add_typer(build_train_app(), name="train")
    app.command("split")(split_command)
    app.command("merge")(merge_command)
    _add_annotate(app, arguments)
    _add_optional(app, arguments, "bench", lambda: importlib.import_module("polyhead.client.bench.command"), _bench_missing)
    _add_optional(app, arguments, "bench-gpu", lambda: importlib.import_module("polyhead.client.bench.gpu.command"), _bench_missing)
    return app


def _add_annotate(app: typer.Typer, arguments: Sequence[str]) -> None:
    if not _is_named("annotate", arguments):
        return
    if all(find_spec(name) for name in ("starlette", "uvicorn", "jinja2", "python_multipart", "yaml")):
        app.add_typer(importlib.import_module("polyhead.client.annotate.commands").annotate_app, name="annotate")
    else:
        app.command("annotate", context_settings=_ANYTHING)(_annotate_missing)


def _add_optional(
    app: typer.Typer, arguments: Sequence[str], name: str, load: Callable[[], ModuleType], missing: Callable[[], None]
) -> None:
    """Add a command by its module's `register`, or `missing` in its place where the module's packages are not installed."""
    if not _is_named(name, arguments):
        return
    try:
        register = load().register
    except ImportError:
        app.command(name, context_settings=_ANYTHING)(missing)
    else:
        register(app)


def _is_named(command: str, arguments: Sequence[str]) -> bool:
    """Whether the arguments name this command, or no command: then --help lists all."""
    return next((argument for argument in arguments if not argument.startswith("-")), command) == command


def _annotate_missing() -> None:
    """Collect people's judgements (needs the annotate extra)."""
    fail("the collection frontend is not installed\nhint: pip install 'polyhead[annotate]'")


def _bench_missing() -> None:
    """Measure the server beside other engines (needs the server extra)."""
    fail(f"the server is not installed\nhint: {_SERVER_HINT}")


def _serve_missing() -> None:
    """Serve a model (needs the server extra)."""
    fail(f"the server is not installed\nhint: {_SERVER_HINT}")


@readable_errors
def split_command(
    model: Annotated[Path, typer.Argument(help="A model folder that transformers loads.")],
    out: Annotated[Path, typer.Argument(help="Folder for the trunk and the head.")],
    split_layer: Annotated[int | None, typer.Option(help="Number of layers in the trunk. Default: 80 % of them.")] = None,
    precision: Annotated[str, typer.Option(help="Precision of the stored trunk: float32 or bfloat16.")] = "float32",
) -> None:
    """Cut a model folder into a trunk folder and a head folder."""
    require_torch("this command", "server")
    from polyhead.heads.model.split import split

    split(model, out, split_layer=split_layer, precision=precision)
    typer.echo(f"split {model.name} into {out}")


@readable_errors
def merge_command(
    trunk: Annotated[Path, typer.Argument(help="A trunk folder.")],
    head: Annotated[Path, typer.Argument(help="A head folder.")],
    out: Annotated[Path, typer.Argument(help="Folder for the whole model, as save_pretrained writes it.")],
    base: Annotated[Path | None, typer.Option(help="For a LoRA head: folder of the head that it runs on.")] = None,
) -> None:
    """Join a trunk and a head into a folder that transformers loads."""
    require_torch("this command", "server")
    from polyhead.heads.model.merge import merge

    merge(trunk, head, out, base)
    typer.echo(f"merged {trunk.name} and {head.name} into {out}")
