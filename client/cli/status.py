"""`polyhead status` and `polyhead health`: the server's state on one screen, and as an exit status."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from polyhead.client.cli.fleet import replica_table
from polyhead.client.cli.session import Session, connected, fail, human_bytes, table
from polyhead.client.errors import PolyheadError, Unimplemented
from polyhead.client.results.records import Generation, Replica, Status, TrunkInfo

__all__ = ["health_command", "status_command"]

_NUM_GENERATIONS = 5


@connected
def health_command(
    session: Session,
    service: Annotated[str, typer.Argument(help="A gRPC service, liveness, or polyhead.v1.head/NAME. Default: the whole server.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for SERVING.")] = 5.0,
) -> None:
    """Exit with 0 if the server is SERVING, of several all, else with 1: for probes and scripts. Needs no token."""
    for address, server in session.servers.items():
        try:
            server.wait_ready(timeout, service)
        except PolyheadError as error:
            fail(f"{address}: {error}" if len(session.servers) > 1 else str(error))
    session.show({"status": "SERVING", "service": service}, "SERVING")


@connected
def status_command(session: Session) -> None:
    """Print the active set, memory of each head, queue, cache, disk and the last generations."""
    status, trunk = session.client.status(), session.client.trunk()
    generations = session.client.generations(_NUM_GENERATIONS)
    answer = {"status": status, "model": trunk.model, "trunk_id": trunk.trunk_id, "generations": generations}
    replicas = _replicas(session, status)
    parts: list[Table | Text] = [_overview(status, trunk), Text(), _names(status), Text(), _heads(status), Text(), _history(generations)]
    if len(replicas) > 1:
        answer["replicas"] = replicas
        parts += [Text(), replica_table(replicas)]
    damage = [Text(f"DAMAGED: {status.damage}\n", style="bold red")] if status.damage else []
    damage += [Text(f"damaged: {problem}\n", style="red") for problem in status.problems]
    session.show(answer, *damage, Group(*parts))


def _replicas(session: Session, status: Status) -> list[Replica]:
    """A primary's; none of a follower, and of a server that is older than this command."""
    try:
        return [] if status.primary else session.client.replicas()
    except Unimplemented:
        return []


def _overview(status: Status, trunk: TrunkInfo) -> Table:
    rows = Table.grid(padding=(0, 2))
    layers = f"layers 0..{trunk.split_layer - 1} of {trunk.num_layers} frozen, {trunk.precision}"
    rows.add_row("model", f"{trunk.model}  ({layers})")
    rows.add_row("heads in", f"{trunk.head_precision}, outputs to the vocabulary in {trunk.output_precision}")
    rows.add_row("attention", trunk.attention)
    if trunk.device:
        rows.add_row("devices", f"trunk on {trunk.device}, heads on {trunk.head_device}")
    for rank in status.ranks:
        rows.add_row(f"rank {rank.rank}", f"{human_bytes(rank.num_bytes)} on {rank.device}")
    rows.add_row("trunk", f"{trunk.trunk_id[:12]}  {human_bytes(status.trunk_bytes)}")
    rows.add_row("memory", _memory(status))
    rows.add_row("budget", _budget(status))
    rows.add_row("requests", f"{status.num_running} running, {status.num_waiting} waiting")
    rows.add_row("cache", _cache(status))
    rows.add_row("disk", f"store {human_bytes(status.store_bytes)}, {human_bytes(status.disk_free_bytes)} free")
    rows.add_row("last swap", f"paused the engine for {status.last_swap_pause_seconds * 1000:.1f} ms")
    for change in status.changes:
        rows.add_row("changing", change)
    if status.primary:
        problem = status.follow_problem.partition("\n")[0]
        rows.add_row("follows", f"{status.primary}{f': {problem}' if problem else ''}")
    rows.add_row("up", f"{status.uptime_seconds / 3600:.1f} h")
    return rows


def _memory(status: Status) -> str:
    """Weights in memory, in units of one unsplit model, beside one unsplit model for each head."""
    total = status.trunk_bytes + sum(head.num_bytes for head in status.resident_heads)
    num_heads = len(status.active)
    if not status.model_bytes:
        return human_bytes(total)
    return f"{human_bytes(total)} for {num_heads} heads: {total / status.model_bytes:.1f} models in place of {num_heads}"


def _budget(status: Status) -> str:
    used, budget = human_bytes(status.head_bytes), human_bytes(status.memory_budget_bytes)
    return f"heads {used} of {budget}; at most {status.max_idle_per_name} unused versions of a name"


def _cache(status: Status) -> str:
    if status.counters and "steps" not in status.counters:  # several teams share the server
        return f"{status.num_blocks} blocks; an admin's token shows what is in them"
    hits, tokens = status.counters.get("cache_hit_tokens", 0), status.counters.get("prompt_tokens", 0)
    rate = f", {hits / tokens:.0%} of prompt tokens found" if tokens else ""
    blocks = f"{status.num_used_blocks} used + {status.num_cached_blocks} cached of {status.num_blocks} blocks"
    return f"{blocks}, heads {status.num_filled_head_blocks} of {status.num_head_blocks}{rate}"


def _heads(status: Status) -> Table:
    rows = table("heads in memory", "head", "active", "size", "requests", "digest")
    for head in status.resident_heads:
        names, size = ", ".join(head.references), human_bytes(head.num_bytes)
        rows.add_row(names, "yes" if head.active else "", size, str(head.num_leases), head.digest[:12])
    return rows


def _names(status: Status) -> Table:
    """A row for each head name: its active version, its versions in memory, and their size."""
    rows = table("heads by name", "name", "active", "in memory", "size", "requests")
    for row in status.resident_names:
        versions = " ".join(f"@{version}" for version in row.versions)
        active = f"@{row.active_version}" if row.active_version else "-"
        rows.add_row(row.name, active, versions, human_bytes(row.num_bytes), str(row.num_leases))
    return rows


def _history(generations: list[Generation]) -> Table:
    rows = table("last generations", "number", "from", "heads", "note")
    for each in generations:
        heads = " ".join(f"{name}@{version}" for name, version in sorted(each.heads.items()))
        rows.add_row(str(each.number), str(each.parent), heads, each.note)
    return rows
