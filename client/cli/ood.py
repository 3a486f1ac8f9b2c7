"""`polyhead ood ...`: fits of out-of-distribution scores."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from polyhead.client import jsonl
from polyhead.client.cli.session import Session, connected, table
from polyhead.client.results.records import OodFit

__all__ = ["ood_app"]

ood_app = typer.Typer(help="Out-of-distribution fits: how far a prompt lies from known prompts.", no_args_is_help=True)

_FEW_PER_DIMENSION = 2  # with fewer prompts for each dimension, other normal prompts score clearly higher than those of the fit


@ood_app.command("fit")
@connected
def fit_command(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the fit. An existing fit gets a new version.")],
    data: Annotated[Path, typer.Option(help='JSON lines: {"prompt": "..."} or {"messages": [...]}.')],
    layer: Annotated[int, typer.Option(help="Layer whose states are read. 0: the tap layer, or the split layer if there is none.")] = 0,
    pooling: Annotated[str, typer.Option(help="mean or last: of the tokens' states.")] = "mean",
    shrinkage: Annotated[float | None, typer.Option(help="Shrinkage of the covariance, between 0 and 1.")] = None,
) -> None:
    """Fit an out-of-distribution score to normal prompts."""
    file = jsonl.read_prompts(data)
    options: Any = {"layer": layer, "pooling": pooling, "shrinkage": shrinkage}
    with file.naming_lines():
        fit = session.client.fit_ood(name, file.items, **options)
    d_model = session.client.trunk().d_model
    lines = [f"{fit.ref}: {_facts(fit)}"]
    if fit.num_prompts < _FEW_PER_DIMENSION * d_model:
        lines.append(f"few prompts for {d_model} dimensions: other normal prompts will score higher than these")
    session.show(fit, "\n".join(lines))


@ood_app.command("list")
@connected
def list_command(session: Session) -> None:
    """List all fits."""
    fits = session.client.ood_fits()
    rows = table("", "fit", "layer", "pooling", "prompts", "their score", "precision", "made")
    for fit in fits:
        made = datetime.datetime.fromtimestamp(fit.created_at).strftime("%Y-%m-%d %H:%M:%S")
        spread = f"{fit.mean_score:.2f} ± {fit.std_score:.2f}"
        rows.add_row(fit.ref, str(fit.layer), fit.pooling, str(fit.num_prompts), spread, fit.precision, made)
    session.show(fits, rows)


def _facts(fit: OodFit) -> str:
    score = f"they score {fit.mean_score:.2f} ± {fit.std_score:.2f}"
    return f"{fit.num_prompts} prompts, layer {fit.layer}, {fit.pooling} of their tokens; {score}"
