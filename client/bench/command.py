"""`polyhead bench`: flags in, tables out, JSON in the last line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from polyhead.client.bench import report
from polyhead.client.bench.environments import default_folder
from polyhead.client.bench.interrupt import Interrupted, run_interruptibly
from polyhead.client.bench.plan import EXTRAS, MEASURES, PEERS, BadPlan, Plan, chosen
from polyhead.client.bench.runner import Notebook, run

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the `bench` command."""
    app.command("bench")(bench)


def bench(
    only: Annotated[str, typer.Option(help=f"Measures, with commas: P1 to P12, {', '.join(EXTRAS)}. Default: P1 to P12.")] = "",
    peers: Annotated[str, typer.Option(help=f"Engines beside ours, with commas: {', '.join(PEERS)}; or none.")] = "transformers",
    runs: Annotated[int, typer.Option(min=1, help="Rounds of each measure; the median counts.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: whether it works, not how fast.")] = False,
    server_args: Annotated[
        list[str] | None,
        typer.Option(help="Flags of our server, in quotes. Given again: one more variant of ours; the first one is measured throughout."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder. Default: the embedded SmolLM2-135M.")] = None,
    peer_envs: Annotated[Path | None, typer.Option(help="Where peers are installed. Default: in the user's cache folder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the JSON here, after every measure.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what the --json file has, measure the rest.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="How time and memory grow; same as --only growth.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for the growth plots, SVG.")] = None,
    soak: Annotated[float, typer.Option(min=0.0, help="Minutes of mixed load; same as --only soak.")] = 0.0,
) -> None:
    """Measure the goals side by side with other engines; the last line is JSON."""
    try:
        plan = Plan(
            measures=_measures(only, growth, soak),
            peers=() if peers == "none" else chosen(peers, PEERS, "peer"),
            runs=1 if quick else runs,
            is_quick=quick,
            model=str(model) if model else "",
            servers=tuple(server_args or [""]),
            environments=peer_envs or default_folder(),
            soak_minutes=soak,
            plots=plots,
        )
        notebook = Notebook(json_file, sys.argv[1:])
        done = notebook.resume() if resume else set()
    except BadPlan as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(_run(plan, notebook, done))


def _run(plan: Plan, notebook: Notebook, done: set[str]) -> int:
    """Exit status. Interrupted or not, what was measured is printed."""
    status = 0

    def tell(text: str) -> None:
        typer.echo(f"… {text}", err=True)

    try:
        run_interruptibly(lambda interrupt: run(plan, notebook, done, interrupt, tell, typer.echo))
    except Interrupted:
        typer.echo("interrupted: this is what was measured", err=True)
        status = INTERRUPTED
    except BadPlan as error:
        typer.echo(f"error: {error}", err=True)
        status = 2
    finally:
        typer.echo(report.markdown(notebook.rows))
        typer.echo(notebook.json)
    return status


def _measures(only: str, growth: bool, soak: float) -> tuple[str, ...]:
    asked = [only, *(["growth"] if growth else []), *(["soak"] if soak else [])]
    if not any(asked):
        return MEASURES
    names = chosen(",".join(asked), (*MEASURES, *EXTRAS), "measure")
    if "soak" in names and not soak:
        raise BadPlan("a soak needs its length\nhint: --soak MINUTES")
    return names
