"""`polyhead bench-gpu`: what the machine has is checked first; then tables, and JSON in the last line."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

NEEDED = {"torch": (2, 11), "transformers": (5, 17)}
SHAPES = ("8b", "tiny")


def register(app: typer.Typer) -> None:
    """Add the `bench-gpu` command."""
    app.command("bench-gpu")(bench_gpu)


def bench_gpu(
    shape: Annotated[str, typer.Option(help="8b, and then a 70B-shaped split; or tiny: whether it works, not how fast.")] = "8b",
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu with --shape tiny.")] = "cuda",
    runs: Annotated[int, typer.Option(min=1, help="Rounds of each timed measure; the median counts.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the JSON here, after every measure.")] = None,
) -> None:
    """Exactness, then speed, on a GPU with random weights beside transformers; exit 1 if it is not exact. The last line is JSON."""
    if problem := obstacle(shape, device):
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(2)
    from polyhead.client.bench.gpu.run import run
    from polyhead.client.bench.gpu.work import PLANS

    tell = lambda text: typer.echo(f"… {text}", err=True)  # noqa: E731
    raise typer.Exit(run(PLANS[shape], device, runs, json_file, tell, typer.echo))


def obstacle(shape: str, device: str) -> str:
    """Why nothing can be measured here; empty if it can."""
    if shape not in SHAPES:
        return f"no such shape: {shape}\nhint: choose of {', '.join(SHAPES)}"
    for package, needed in NEEDED.items():
        found = version(package)
        if tuple(int(part) for part in found.split(".")[:2]) < needed:
            return f"{package} {'.'.join(map(str, needed))} or newer is needed: {found}"
    import torch

    if not device.startswith("cuda"):
        return "" if device == "cpu" and shape == "tiny" else f"only --shape tiny runs without a GPU: {shape} on {device}"
    if not torch.cuda.is_available():
        return f"there is no CUDA here that torch {torch.__version__} can use\nhint: --shape tiny --device cpu tries the command"
    return ""
