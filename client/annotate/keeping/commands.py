"""`polyhead annotate backup | restore | verify | rebuild`."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from polyhead.client import AsyncClient
from polyhead.client.annotate.keeping import backup, rebuild, verify
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.terminal import DEFAULT_DB, Db, ServerAddress, TlsCa, TokenFile, fail, readable, token_of


@readable
def backup_command(to: Annotated[Path, typer.Argument(help="The file to write.")], db: Db = DEFAULT_DB) -> None:
    """Copy the database while it is served; the copy is checked, and its SHA-256 written beside it."""
    made = backup.backup(Database.open(db), to)
    typer.echo(f"{made.path}: log up to {made.last_seq}, sha256 {made.sha256}")


@readable
def restore_command(source: Annotated[Path, typer.Argument(metavar="FROM", help="A backup.")], db: Db = DEFAULT_DB) -> None:
    """Put a backup in the database's place. Nothing may serve it; who was erased since the backup is erased again."""
    num_erased = backup.restore(source, db)
    typer.echo(f"{db} is {source} again; {num_erased} erasures were done again. The file that was there: {db}.before")


@readable
def verify_command(
    db: Db = DEFAULT_DB,
    sample: Annotated[int, typer.Option(min=0, help="Draw so many stored replies again on the model server, and compare.")] = 0,
    server: ServerAddress = "127.0.0.1:50051",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Check the file, its hashes and its log; make the tables again from the log and compare. Exit status 1 if anything is wrong."""
    database = Database.open(db)
    wrong = verify.problems(database)
    for each in wrong:
        typer.echo(each)
    if sample:
        wrong += asyncio.run(_replay(database, sample, server, token_of(token_file), tls_ca.read_bytes() if tls_ca else None))
    if wrong:
        fail(f"{db}: {len(wrong)} problems")
    typer.echo(f"{db} is sound: log up to {database.value('SELECT max(seq) FROM events')}")


@readable
def rebuild_command(to: Annotated[Path, typer.Argument(help="The new database.")], db: Db = DEFAULT_DB) -> None:
    """Make a new database from the log of this one, and say where their tables differ. People need new sign-in codes there."""
    database = Database.open(db)
    made = rebuild.rebuild(database, to)
    for each in rebuild.differences(database, made):
        typer.echo(each)
    typer.echo(f"{to}: made from {made.value('SELECT count(*) FROM events')} events")
    made.close()


async def _replay(db: Database, num: int, server: str, token: str | None, certificates: bytes | None) -> list[str]:
    """Replies that came out differently. Those whose version is gone are counted, and no error."""
    async with AsyncClient(server, token=token, root_certificates=certificates, timeout=120) as client:
        found = await verify.replay(db, client, num)
    counts = Counter(each.outcome for each in found)
    typer.echo(", ".join(f"{outcome}: {counts[outcome]}" for outcome in ("same", "gone", "different")))
    for each in found:
        if each.detail:
            typer.echo(f"{each.candidate_id}: {each.detail}")
    return [each.candidate_id for each in found if each.outcome == "different"]
