"""The command line, put together. `serve`, `annotate`, `bench` and `bench-gpu` are imported only when asked for, so that a client-only
install works."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from polyhead.client.cli.chat import chat_command
from polyhead.client.cli.configurations import configurations_app
from polyhead.client.cli.generate import generate_command, score_command
from polyhead.client.cli.heads import heads_app
from polyhead.client.cli.ood import ood_app
from polyhead.client.cli.session import fail, readable_errors
from polyhead.client.cli.status import health_command, status_command
from polyhead.client.cli.train import build_train_app

__all__ = ["build_app"]

_SERVER_HINT = "pip install 'polyhead[server]'"
_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True}


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The app for these arguments; they decide whether the server's own commands are imported."""
    app = typer.Typer(
        name="polyhead",
        help="One frozen trunk, many swappable heads: generation and scoring over gRPC.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    _add_serve(app, arguments)
    app.command("status")(status_command)
    app.command("health")(health_command)
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
    _add_bench(app, arguments)
    _add_bench_gpu(app, arguments)
    return app


def _add_serve(app: typer.Typer, arguments: Sequence[str]) -> None:
    if not _is_asked("serve", arguments):
        return
    try:
        register = importlib.import_module("polyhead.server.main").register
    except ImportError:
        app.command("serve", context_settings=_ANYTHING)(_serve_missing)
    else:
        register(app)


def _add_annotate(app: typer.Typer, arguments: Sequence[str]) -> None:
    if not _is_asked("annotate", arguments):
        return
    if all(find_spec(name) for name in ("starlette", "uvicorn", "jinja2", "python_multipart", "yaml")):
        app.add_typer(importlib.import_module("polyhead.client.annotate.commands").annotate_app, name="annotate")
    else:
        app.command("annotate", context_settings=_ANYTHING)(_annotate_missing)


def _add_bench(app: typer.Typer, arguments: Sequence[str]) -> None:
    if not _is_asked("bench", arguments):
        return
    try:
        register = importlib.import_module("polyhead.client.bench.command").register
    except ImportError:
        app.command("bench", context_settings=_ANYTHING)(_bench_missing)
    else:
        register(app)


def _add_bench_gpu(app: typer.Typer, arguments: Sequence[str]) -> None:
    if not _is_asked("bench-gpu", arguments):
        return
    try:
        register = importlib.import_module("polyhead.client.bench.gpu.command").register
    except ImportError:
        app.command("bench-gpu", context_settings=_ANYTHING)(_bench_missing)
    else:
        register(app)


def _is_asked(command: str, arguments: Sequence[str]) -> bool:
    """Whether it is the command of these arguments, or none is: then all are listed."""
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
    split_layer: Annotated[int | None, typer.Option(help="Where to cut; default: 80 % of the layers go to the trunk.")] = None,
    precision: Annotated[str, typer.Option(help="How the trunk is stored: float32, bfloat16.")] = "float32",
) -> None:
    """Cut a model folder into a trunk folder and a head folder."""
    _require_torch()
    from polyhead.heads.model.split import split

    split(model, out, split_layer=split_layer, precision=precision)
    typer.echo(f"split {model.name} into {out}")


@readable_errors
def merge_command(
    trunk: Annotated[Path, typer.Argument(help="A trunk folder.")],
    head: Annotated[Path, typer.Argument(help="A head folder.")],
    out: Annotated[Path, typer.Argument(help="Folder for the whole model, as save_pretrained writes it.")],
    base: Annotated[Path | None, typer.Option(help="For a LoRA head: the folder of the head that it is built on.")] = None,
) -> None:
    """Join a trunk and a head into a folder that transformers loads."""
    _require_torch()
    from polyhead.heads.model.merge import merge

    merge(trunk, head, out, base)
    typer.echo(f"merged {trunk.name} and {head.name} into {out}")


def _require_torch() -> None:
    if find_spec("torch") is None or find_spec("transformers") is None:
        fail(f"this command needs torch and transformers\nhint: {_SERVER_HINT}")
