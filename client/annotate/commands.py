"""`polyhead annotate`: make a database, serve it, check a project, invite people, export what they said."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from polyhead.client import AsyncFleet
from polyhead.client.annotate.exports.commands import export_command
from polyhead.client.annotate.keeping.commands import backup_command, rebuild_command, restore_command, verify_command
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import ProjectConfig, read_project
from polyhead.client.annotate.replies.checking import check
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.terminal import DEFAULT_DB, Db, ServerAddress, TlsCa, TokenFile, fail, read_token, readable, token_of

DEFAULT_PORT = 8080

annotate_app = typer.Typer(help="Collect people's judgements of live replies, and hand them to trainers.", no_args_is_help=True)


@annotate_app.command("init")
@readable
def init_command(
    db: Db = DEFAULT_DB,
    project: Annotated[Path | None, typer.Option(help="A project's YAML file. Default: choose the best of four replies.")] = None,
    url: Annotated[str, typer.Option(help="Where people will reach the pages, for the invite link.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
) -> None:
    """Make a database with an admin, a first project with an open round, and an invite link."""
    config = read_project(project.read_text(encoding="utf-8"), str(project)) if project else default_project()
    code, link = initialise(db, config, url)
    typer.echo(f"database       {db}")
    typer.echo(f"admin's code   {code}   (shown once: keep it)")
    typer.echo(f"invite link    {link}   (five people, two weeks)")
    typer.echo(f"next           polyhead annotate serve --db {db}")


@annotate_app.command("serve")
@readable
def serve_command(
    db: Db = DEFAULT_DB,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.")] = DEFAULT_PORT,
    server: ServerAddress = "127.0.0.1:50051",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of these pages (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy on this machine ends TLS and sets X-Forwarded-For.")
    ] = False,
    backup_dir: Annotated[
        Path | None, typer.Option(help="A folder for hourly backups: the newest 24 stay, and the last one of each of 14 days.")
    ] = None,
    trainer_token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a trainer's token of the model server: head versions that replies came from get the label `annotate`, so that"
            " the server keeps them and replies can be drawn again."
        ),
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Port of metrics for Prometheus; 0: none.", min=0, max=65535)] = 0,
    metrics_host: Annotated[str, typer.Option(help="Address of the metrics, which ask for no token.")] = "127.0.0.1",
) -> None:
    """Serve the pages. Beyond loopback they are served with TLS, or not at all."""
    _check_address(host, tls_cert, tls_key, is_behind_proxy=behind_proxy)
    token = token_of(token_file)
    certificates = tls_ca.read_bytes() if tls_ca else None
    database = Database.open(db)
    database.lock()
    try:
        where = (host, port, tls_cert, tls_key, backup_dir, (metrics_host, metrics_port))
        trainer_token = read_token(trainer_token_file) if trainer_token_file else None
        asyncio.run(_serve(database, server, token, certificates, *where, trainer_token, is_behind_proxy=behind_proxy))
    finally:
        database.close()


@annotate_app.command("check")
@readable
def check_command(
    file: Annotated[Path, typer.Argument(help="A project's YAML file.")],
    server: ServerAddress = "127.0.0.1:50051",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
) -> None:
    """Read a project's file and ask the model server for its heads, rules, recipe and transcript format."""
    config = read_project(file.read_text(encoding="utf-8"), str(file))
    token = token_of(token_file)
    certificates = tls_ca.read_bytes() if tls_ca else None
    for line in asyncio.run(_ask_server(config, server, token, certificates)):
        typer.echo(line)


@annotate_app.command("project")
@readable
def project_command(file: Annotated[Path, typer.Argument(help="A project's YAML file.")], db: Db = DEFAULT_DB) -> None:
    """Store a project, or a new version of it, and open a round on it."""
    config = read_project(file.read_text(encoding="utf-8"), str(file))
    database = Database.open(db)
    stored = projects.store_project(database, config, "command line")
    projects.open_round(database, stored, "command line")
    typer.echo(f"project {config.slug} is open: version {projects.open_project(database, config.slug).version}")


@annotate_app.command("close-round")
@readable
def close_round_command(project: Annotated[str, typer.Argument(help="The project's slug.")], db: Db = DEFAULT_DB) -> None:
    """Close a project's round and leave the project open: no tasks are handed out until the next round begins."""
    database = Database.open(db)
    number = projects.close_round(database, projects.find_project(database, project), "command line")
    if number is None:
        fail(f"no round is open: {project}\nhint: the project's page, /admin/p/{project}, begins one")
    typer.echo(f"round {number} of {project} is closed; an admin begins the next one on its page, /admin/p/{project}")


@annotate_app.command("copy")
@readable
def copy_command(
    project: Annotated[str, typer.Argument(help="The slug of the project whose settings are taken.")],
    name: Annotated[str, typer.Argument(help="The slug of the new one.")],
    db: Db = DEFAULT_DB,
    file: Annotated[
        Path | None, typer.Option(help="Write the settings here as YAML, to be changed before they are stored, and store nothing.")
    ] = None,
) -> None:
    """Copy a project's settings under a new name: no items, no answers."""
    from polyhead.client.annotate.projects import copying

    database = Database.open(db)
    if file is None:
        copying.copy_project(database, project, name, "command line")
        typer.echo(f"project {name} is a draft with the settings of {project}: open a round on its page, /admin/p/{name}")
        return
    text = copying.copied(database, project, name)
    with file.open("x", encoding="utf-8") as written:
        written.write(text)
    typer.echo(f"settings of {project} as {name}: {file}")
    typer.echo(f"next: polyhead annotate project {file} --db {db}")


@annotate_app.command("import")
@readable
def import_command(
    file: Annotated[Path, typer.Argument(help='JSON lines: {"messages" or "prompt", "replies", "rule", "gold", ...}.')],
    project: Annotated[str, typer.Option(help="The project's slug.")] = "helpful",
    db: Db = DEFAULT_DB,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and count, and store nothing.")] = False,
) -> None:
    """Add items to a project's open round: the whole file, or nothing of it where a line is wrong."""
    from polyhead.client.annotate.items.imports import import_items

    database = Database.open(db)
    done = import_items(database, projects.open_project(database, project), file, "command line", dry_run=dry_run)
    stored = "would be stored" if dry_run else "stored"
    typer.echo(f"{done.num_items} items of {done.num_lines} lines {stored}, {done.num_duplicates} were there already")


@annotate_app.command("invite")
@readable
def invite_command(
    db: Db = DEFAULT_DB,
    role: Annotated[str, typer.Option(help="annotator, adjudicator, or admin.")] = "annotator",
    uses: Annotated[int, typer.Option(min=1, help="How many people may use the link.")] = 1,
    url: Annotated[str, typer.Option(help="Where people reach the pages.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
    project: Annotated[
        list[str] | None, typer.Option(help="The slug of a project that these people see, and no other; may be repeated. Default: all.")
    ] = None,
) -> None:
    """Print an invite link; it ends after two weeks."""
    if role not in accounts.ROLES:
        fail(f"unknown role: {role}\nhint: {', '.join(accounts.ROLES)}")
    token = accounts.create_invite(Database.open(db), role, max_uses=uses, by="command line", projects=project or ())
    typer.echo(f"{url.rstrip('/')}/i/{token}")


@annotate_app.command("erase")
@readable
def erase_command(
    person: Annotated[str, typer.Argument(help="A pseudonym, or an account's id.")],
    mode: Annotated[
        str, typer.Option(help="identity: who the person is, the work stays under a number. all: what was written and answered, too.")
    ] = "identity",
    db: Db = DEFAULT_DB,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask: it cannot be undone.")] = False,
) -> None:
    """Erase one person's data from the database, its log and its free pages."""
    from polyhead.client.annotate.people import erasure

    database = Database.open(db)
    found = erasure.find(database, person)
    if not is_sure:
        typer.confirm(f"erase {mode} of {found.pseudonym}? This cannot be undone", abort=True)
    erasure.erase(database, found.id, mode, "command line")
    typer.echo(f"erased: {mode} of {found.id}; {erasure.list_path(db)} has it done again after a restore")
    typer.echo("backups that were made before still hold the data: restore them by `polyhead annotate restore` alone, or delete them")


_ELSEWHERE = {
    "export": export_command,
    "backup": backup_command,
    "restore": restore_command,
    "verify": verify_command,
    "rebuild": rebuild_command,
}
for _name, _command in _ELSEWHERE.items():
    annotate_app.command(_name)(_command)


def default_project() -> ProjectConfig:
    """Choose the best of four: two of the policy, two of the reference."""
    return read_project(
        files("polyhead.client.annotate.projects").joinpath("default_project.yaml").read_text(encoding="utf-8"), "default_project.yaml"
    )


def initialise(path: Path, config: ProjectConfig, url: str) -> tuple[str, str]:
    """(the admin's sign-in code, an invite link) of a new database with one project under way."""
    database = Database.create(path)
    try:
        _, code = accounts.create_account(database, "admin", "admin")
        project = projects.store_project(database, config, "init")
        projects.open_round(database, project, "init")
        token = accounts.create_invite(database, max_uses=5, by="init")
    finally:
        database.close()
    return accounts.shown_code(code), f"{url.rstrip('/')}/i/{token}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_address(host: str, certificate: Path | None, key: Path | None, *, is_behind_proxy: bool) -> None:
    if bool(certificate) != bool(key):
        fail("--tls-cert and --tls-key belong together")
    if not is_loopback(host) and not certificate and not is_behind_proxy:
        fail(
            f"refusing to listen on {host} without TLS\nhint: give --tls-cert and --tls-key, or let a proxy end TLS and say --behind-proxy"
        )


async def _serve(
    db: Database, target: str, token: str | None, certificates: bytes | None, host: str, port: int, certificate: Path | None,
    key: Path | None, backup_dir: Path | None, metrics: tuple[str, int], trainer_token: str | None, *,
    is_behind_proxy: bool,
) -> None:  # fmt: skip
    import uvicorn
    from prometheus_client import CollectorRegistry, start_http_server

    from polyhead.client.annotate.web.announcing import AnnouncingServer
    from polyhead.client.annotate.web.app import make_app

    is_https = certificate is not None or is_behind_proxy
    registry = CollectorRegistry() if metrics[1] else None
    async with contextlib.AsyncExitStack() as open_ones:
        clients = [AsyncFleet(target, token=each, root_certificates=certificates, timeout=120) for each in (token, trainer_token)]
        client, trainer = [await open_ones.enter_async_context(each) for each in clients]
        app = make_app(
            db, client, is_https=is_https, is_behind_proxy=is_behind_proxy, backup_dir=backup_dir, registry=registry,
            trainer=trainer if trainer_token else None,
        )  # fmt: skip
        if registry is not None:
            start_http_server(metrics[1], metrics[0], registry)
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=5, ssl_certfile=certificate, ssl_keyfile=key,
        )  # fmt: skip
        scheme = "https" if certificate else "http"

        def announce(bound_port: int) -> None:
            typer.echo(f"polyhead annotate   {scheme}://{host}:{bound_port}   {db.path}   replies from {target}")

        await AnnouncingServer(config, announce).serve()


async def _ask_server(config: ProjectConfig, target: str, token: str | None, certificates: bytes | None) -> list[str]:
    """What the file names, as the server has it."""
    async with AsyncFleet(target, token=token, root_certificates=certificates, timeout=20) as client:
        return [*await check(config, client), f"project {config.slug}: ready"]
