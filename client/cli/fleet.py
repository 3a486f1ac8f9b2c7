"""`polyhead fleet`: the servers that hold one history, and how each stands."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from polyhead.client.cli.session import Session, connected, table
from polyhead.client.results.records import Replica

__all__ = ["fleet_command", "replica_table"]


@connected
def fleet_command(session: Session) -> None:
    """List the primary and its followers: address, generation, state, error. Ask the primary."""
    replicas = session.client.replicas()
    session.show(replicas, replica_table(replicas))


def replica_table(replicas: Sequence[Replica]) -> Table:
    rows = table("replicas", "name", "address", "generation", "state", "error")
    for each in replicas:
        silent = f" for {each.silent_seconds:.0f} s" if each.state == "lost" else ""
        rows.add_row(each.name, each.address or "here", str(each.generation), f"{each.state}{silent}", each.error)
    return rows
