"""`polyhead heads ...`: versions of heads and the active set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

from polyhead.client import jsonl
from polyhead.client.cli.heads import stopped_store
from polyhead.client.cli.heads.history import activated, generation_line, history_lines, removed_lines, rolled_back
from polyhead.client.cli.heads.one_version import moment, shown
from polyhead.client.cli.session import Session, connected, human_bytes, table
from polyhead.client.errors import InvalidArgument
from polyhead.client.results.records import HeadVersion

__all__ = ["heads_app"]

_SEARCHED_GENERATIONS = 1000  # in which `show` looks for those that a version was active in
_RECENT_GENERATIONS = 50  # in which `rollback` looks for where the next rollback goes
heads_app = typer.Typer(help="Versions of heads and the active set.", no_args_is_help=True)

_Ref = Annotated[str, typer.Argument(help="policy@7; policy alone means the active version.")]
_Store = Annotated[Path | None, typer.Option(help="Work on the store of a stopped server in this folder.")]
_KIND_HELP = "policy, preference, rule or value. Default: the folder's, else that of the base or of the active version."
_TO_HELP = "Generation to restore. Default: the parent of the active one. Required with --store, where 0 empties the active set."
_Labels = Annotated[list[str], typer.Argument(help="One or several labels.")]
_Note = Annotated[str, typer.Option(help="Reason, kept in the history.")]
_ExpectedHead = Annotated[
    list[str] | None, typer.Option(help="Fail unless this version (policy@6) is active; policy@0: no version. Repeatable.")
]
_Require = Annotated[
    str | None, typer.Option(help="Replicas that must have loaded the versions: all, connected or primary.", show_default=False)
]
_PrepareTimeout = Annotated[float | None, typer.Option(help="Seconds that replicas get to load them. Default: 60.")]
_Expected = Annotated[int | None, typer.Option("--expected", help="Fail unless this generation is the active one.")]


@heads_app.command("list")
@connected
def list_command(session: Session, name: Annotated[str | None, typer.Argument(help="Only this head.")] = None) -> None:
    """All versions, newest first."""
    heads = session.client.heads(name)
    columns = {
        "head": [head.ref for head in heads],
        "kind": [head.kind.value for head in heads],
        "active": ["yes" if head.active else "" for head in heads],
        "in memory": ["yes" if head.resident else "" for head in heads],
        "size": [human_bytes(head.num_bytes) for head in heads],
        "made": [moment(head.created_at).rpartition(":")[0] for head in heads],  # without seconds: 80 columns hold a row
        "digest": [head.digest[:8] for head in heads],
        "labels": [" ".join(head.labels) for head in heads],
        "built on": [_built_on(head) for head in heads],
    }
    needed = [name for name, cells in columns.items() if any(cells) or name not in ("labels", "built on")]
    rows = table("", *needed)
    for row in zip(*(columns[name] for name in needed), strict=True):
        rows.add_row(*row)
    session.show(heads, rows)


@heads_app.command("push")
@connected
def push_command(
    session: Session,
    name: Annotated[str, typer.Argument(help="The head's name.")],
    folder: Annotated[Path, typer.Argument(help="A head folder, or a folder that save_pretrained wrote: a model or a PEFT adapter.")],
    kind: Annotated[str | None, typer.Option(help=_KIND_HELP)] = None,
    base: Annotated[
        str, typer.Option(help="Version that it was made from (policy@3): only tensors that differ are sent. An adapter runs on it.")
    ] = "",
    bias: Annotated[float | None, typer.Option(help="Preference, value: subtracted from the raw score.")] = None,
    scale: Annotated[float | None, typer.Option(help="Preference, value: divides the score after the bias is subtracted.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label: a labelled version is not deleted automatically. Repeatable.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Number that its trainer measured: loss=0.31. Repeatable.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Also make it active.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check everything, store nothing.")] = False,
) -> None:
    """Upload a new version."""
    options: Any = {"kind": kind, "base": base, "bias": bias, "scale": scale, "labels": label or [], "validate_only": validate_only}
    options["metrics"] = dict(_measured(each) for each in metric or [])
    report = session.client.push(name, folder, **options)
    lines = [f"{report.head.name}@{report.version}" if report.version else "valid; nothing was stored"]
    lines.append(f"{report.summary}; {human_bytes(report.num_bytes_sent)} in all")
    lines += removed_lines(report.removed)
    if activate and report.version:
        lines += activated(session.client.activate({name: report.version}))
    session.show(report, "\n".join(lines))


@heads_app.command("pull")
@connected
def pull_command(
    session: Session, ref: _Ref, folder: Annotated[Path, typer.Argument(help="Where to write the head folder.")]
) -> None:
    """Download a version as a head folder. The folder must be new or empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidArgument(f"not an empty folder: {folder}\nhint: pull into a new one", field="folder")
    head = session.client.head(ref)
    tensors = session.client.pull_head(head.ref, folder)  # by its number: the active version may change in between
    session.show({"head": head.ref, "tensors": sorted(tensors), "folder": str(folder)}, f"{head.ref}: {len(tensors)} tensors in {folder}")


@heads_app.command("show")
@connected
def show_command(session: Session, ref: _Ref) -> None:
    """Print everything that the server stores about one version."""
    head = session.client.head(ref)
    generations = [each for each in session.client.generations(_SEARCHED_GENERATIONS) if each.heads.get(head.name) == head.version]
    rows = Table.grid(padding=(0, 2))
    for name, value in shown(head, generations).items():
        rows.add_row(Text(name), Text(value, overflow="fold"))
    session.show({"head": head, "generations": generations}, rows)


@heads_app.command("copy")
@connected
def copy_command(
    session: Session,
    source: _Ref,
    target: Annotated[str, typer.Argument(help="Name of the new version.")],
    kind: Annotated[str | None, typer.Option(help="New kind, of the same output: policy or rule, preference or value.")] = None,
    bias: Annotated[float | None, typer.Option(help="New bias.")] = None,
    scale: Annotated[float | None, typer.Option(help="New scale.")] = None,
) -> None:
    """Make a new version of stored weights, without an upload: reference from policy@7, value from preference, a new bias or scale."""
    options: Any = {"kind": kind, "bias": bias, "scale": scale}
    version = session.client.copy_head(source, target, **options)
    session.show({"head": target, "version": version}, f"{target}@{version}")


@heads_app.command("calibrate")
@connected
def calibrate_command(
    session: Session,
    ref: Annotated[str, typer.Argument(help="preference@3; preference alone means the active version.")],
    data: Annotated[Path, typer.Option(help='JSON lines: {"prompt" or "messages": ..., "completion": "..."}.')],
    scale: Annotated[bool, typer.Option("--scale", help="Also give those scores a standard deviation of 1.")] = False,
    activate: Annotated[bool, typer.Option("--activate", help="Also make the new version active.")] = False,
    expected: _Expected = None,
) -> None:
    """Make a new version of a preference head, without an upload, whose scores of reference completions have the mean 0."""
    file = jsonl.read_references(data)
    with file.naming_lines():
        done = session.client.calibrate(ref, file.items, scale=scale, activate=activate, expected_generation=expected)
    lines = [f"{done.name}@{done.version} from {done.source}", f"bias {done.old_bias:.6g} -> {done.bias:.6g}"]
    lines += [f"scale {done.scale:.6g}"] if scale else []
    lines.append(f"measured on {done.num_items} references, raw scores {done.bias:.4f} ± {done.std:.4f}")
    session.show(done, "\n".join(lines + ([generation_line(done.generation)] if done.generation else [])))


@heads_app.command("activate")
@connected
def activate_command(
    session: Session,
    refs: Annotated[list[str] | None, typer.Argument(help="One or several of policy@7.")] = None,
    deactivate: Annotated[list[str] | None, typer.Option(help="Name to remove from the active set. Repeatable.")] = None,
    expected: _Expected = None,
    expected_head: _ExpectedHead = None,
    note: _Note = "",
    require: _Require = None,
    prepare_timeout: _PrepareTimeout = None,
) -> None:
    """Make versions active as one change."""
    heads, expected_versions = (dict(_split(ref) for ref in given or ()) for given in (refs, expected_head))
    generation = session.client.activate(
        heads,
        deactivate=deactivate or (),
        expected_generation=expected,
        expected_versions=expected_versions,
        require=cast(Any, require),
        prepare_timeout=prepare_timeout,
        note=note,
    )
    session.show(generation, "\n".join(activated(generation)))


@heads_app.command("rollback")
@connected
def rollback_command(
    session: Session,
    to: Annotated[int | None, typer.Option(help=_TO_HELP)] = None,
    expected: _Expected = None,
    expected_head: _ExpectedHead = None,
    require: _Require = None,
    store: _Store = None,
) -> None:
    """Make a new generation equal to an earlier one."""
    if store and (expected is not None or expected_head):
        option, field = ("--expected", "expected") if expected is not None else ("--expected-head", "expected_head")
        raise InvalidArgument(f"{option} needs a running server: it cannot be combined with --store", field=field)
    if store:
        generation = stopped_store.rollback(store, to)
    else:
        versions = dict(_split(ref) for ref in expected_head or ())
        generation = session.client.rollback(to, expected_generation=expected, expected_versions=versions, require=cast(Any, require))
    history = stopped_store.history(store, _RECENT_GENERATIONS) if store else session.client.generations(_RECENT_GENERATIONS)
    session.show(generation, "\n".join(rolled_back(generation, history)))


@heads_app.command("label")
@connected
def label_command(session: Session, ref: _Ref, labels: _Labels) -> None:
    """Label a version (best, paper). A labelled version is not deleted automatically."""
    head = session.client.label(ref, *labels)
    session.show(head, f"{head.ref}: {', '.join(head.labels)}")


@heads_app.command("unlabel")
@connected
def unlabel_command(session: Session, ref: _Ref, labels: _Labels) -> None:
    """Remove labels from a version. Without any, it is deleted when there are more versions of its name than --keep-versions."""
    head = session.client.unlabel(ref, *labels)
    session.show(head, f"{head.ref}: {', '.join(head.labels) or 'no labels'}")


@heads_app.command("delete")
@connected
def delete_command(
    session: Session, refs: Annotated[list[str], typer.Argument(help="One or several of policy@7.")], store: _Store = None
) -> None:
    """Delete versions that are neither active nor labelled."""
    versions = [_split(ref) for ref in refs]
    for ref, version in zip(refs, versions, strict=True):
        if store:
            stopped_store.delete(store, *version)
        else:
            session.client.delete_head(ref)
        if not session.as_json:
            session.show(None, f"deleted {ref}")
    if session.as_json:
        session.show({"deleted": refs}, "")


@heads_app.command("watch")
@connected
def watch_command(session: Session, after: Annotated[int, typer.Option(help="Start after this generation.")] = 0) -> None:
    """Print the active generation, then each new one, until interrupted."""
    for generation in session.client.watch(after):
        session.show(generation, generation_line(generation))


@heads_app.command("history")
@connected
def history_command(
    session: Session, limit: Annotated[int, typer.Option(min=1, help="Most rows.")] = 20, store: _Store = None
) -> None:
    """The history of the active set, newest first."""
    generations = stopped_store.history(store, limit) if store else session.client.generations(limit)
    session.show(generations, "\n".join(history_lines(generations)))


def _built_on(head: HeadVersion) -> str:
    """Of a LoRA head: "LoRA 8 on policy@3"."""
    lora = head.manifest.lora
    return f"LoRA {lora.rank} on {head.manifest.base}" if lora is not None else ""


def _measured(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InvalidArgument(f"a metric is given as name=number: {text!r}", field="metric") from None


def _split(ref: str) -> tuple[str, int]:
    name, _, version = ref.partition("@")
    if not version.isascii() or not version.isdigit():
        raise InvalidArgument(
            f"a version is needed: {ref!r}\nhint: write {name}@7; see polyhead heads list {name}", field="refs"
        )
    return name, int(version)

