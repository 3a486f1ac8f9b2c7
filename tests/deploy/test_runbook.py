"""docs/operations.md is true: its commands and flags exist, every alert has its section, and the repair that it gives repairs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyhead.client import Client
from polyhead.client.cli.app import build_app
from polyhead.client.local import LocalServer
from polyhead.server.config import OTHER_VARIABLES, ServeConfig
from polyhead.server.rpc.auth import load_tokens
from tests.deploy import settings_table
from tests.deploy.conftest import DEPLOY, DOCS, Exported, scrape
from tests.deploy.metrics_table import shown, table
from tests.deploy.test_monitoring import ALERTS
from tests.e2e.forked import COMMAND, finished
from tests.e2e.support import eventually, fingerprint, push_pair, serving
from tests.e2e.tiny import save_tiny_llama

TEXT = (DOCS / "operations.md").read_text(encoding="utf-8")
WITH_SETTINGS = TEXT + settings_table.PAGE.read_text(encoding="utf-8") + (DOCS / "guides" / "serve.md").read_text(encoding="utf-8")
KNOWN = ("serve", "status", "health", "fleet", "heads", "generate", "score", "split", "merge", "train", "chat")
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def headings() -> list[tuple[str, str]]:
    """(marks, title)."""
    return re.findall(r"^(#+) (.+)$", TEXT, re.MULTILINE)


def commands() -> Iterator[list[str]]:
    """Every call of `polyhead` in a console block or between backticks, as words."""
    lines = [line[2:] for block in CONSOLE.findall(WITH_SETTINGS) for line in block.splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", WITH_SETTINGS)]:
        for words in simple_commands(line):
            named = [index for index, word in enumerate(words) if Path(word).name == "polyhead" and words[index + 1 : index + 2]]
            if named and words[named[-1] + 1] in KNOWN:
                yield words[named[-1] + 1 :]


def simple_commands(line: str) -> Iterator[list[str]]:
    """The parts between &&, ; and their like, as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&|;()<>"):
            yield words
            words = []
        else:
            words.append(word)


def test_every_command_and_flag_exists() -> None:
    found = list(commands())
    assert {words[0] for words in found} >= {"health", "status", "heads", "serve"}
    for words in found:
        arguments = words if "--help" in words else [*words, "--help"]  # parsed, unknown options refused, and not run
        done = CliRunner().invoke(build_app(arguments), arguments)
        assert done.exit_code == 0, (words, done.output)


def test_a_wrong_flag_would_be_seen() -> None:
    for wrong in (["heads", "rollback", "--too", "12"], ["heads", "undo"], ["status", "--wait"]):
        assert CliRunner().invoke(build_app(wrong), [*wrong, "--help"]).exit_code != 0


def test_every_alert_has_its_section_with_something_to_do() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL))
    alerts = [rule["alert"] for rule in ALERTS]
    assert [title for _, title in headings() if title.startswith("Polyhead")] == alerts
    for alert in alerts:
        assert len(sections[alert].split()) > 20, alert


def test_files_and_variables_it_names_exist() -> None:
    table_of_files = (DEPLOY / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (.+?) \|", table_of_files, re.MULTILINE)[1:]
    files = [name for cell in named for name in re.findall(r"`([^`]+)`", cell)]
    assert len(files) >= 8
    assert not [name for name in files if not (DEPLOY / name).exists()]
    variables = set(re.findall(r"POLYHEAD_[A-Z_]*[A-Z]", TEXT))
    assert variables <= {f"POLYHEAD_{name.upper()}" for name in ServeConfig.model_fields} | OTHER_VARIABLES


def test_the_tokens_file_it_shows_is_read(tmp_path: Path) -> None:
    [example] = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    path = tmp_path / "tokens.toml"
    path.write_text(example, encoding="utf-8")
    path.chmod(0o600)
    assert [token.caller.role.value for token in load_tokens(path) if token.caller.role] == ["worker", "trainer"]


def test_the_table_of_metrics_is_what_a_server_exports(exported: Exported) -> None:
    assert shown() == table(exported), "python -m tests.deploy.metrics_table, then commit"


def test_the_table_of_settings_is_the_configurations() -> None:
    assert settings_table.shown() == settings_table.table(), "python -m tests.deploy.settings_table, then commit"


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[LocalServer]:
    """A server that was started on a store whose active policy lost a byte while nobody looked."""
    model, store = save_tiny_llama(tmp_path / "model"), tmp_path / "store"
    with serving(model, store) as server, Client(server.address, timeout=60) as client:
        pair = push_pair(client, 1)
        client.activate(pair)
        digest = client.head(f"policy@{pair['policy']}").digest
    [blob] = [path for path in (store / "blobs").iterdir() if digest in path.name]
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with serving(model, store) as server:
        yield server


def run(server: LocalServer, *words: str) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, "-m", COMMAND, *words, "--server", server.address])


def form(text: str) -> str:
    return re.sub(r"\d+", "N", text.strip())


def test_generations_are_printed_as_written(damaged: LocalServer) -> None:
    """The history's line, and a rollback's: which generation it equals, and where the next one goes."""
    history, back = re.findall(r"# (generation \d+ (?:from \d+|equals \d+)  .*)$", TEXT, re.MULTILINE)
    assert run(damaged, "heads", "rollback", "--to", "1").returncode == 0
    with Client(damaged.address, timeout=60) as client:
        client.activate(push_pair(client, 2))
    lines = run(damaged, "heads", "history").stdout.splitlines()
    assert form(lines[0]) == form(history)
    assert lines[0].startswith("generation 4 from 3  ")
    shown_start, shown_end = (form(part) for part in back.removesuffix(": the next one goes to 12").split("  ...  "))
    printed, following = run(damaged, "heads", "rollback").stdout.splitlines()
    assert form(printed).startswith(f"{shown_start}  ")
    assert form(printed).endswith(shown_end)
    numbers = [int(number) for number in re.findall(r"\d+", back)]
    assert numbers == [15, 13, 13, 12]  # the parent of the generation that it equals
    assert printed.startswith("generation 5 equals 1  "), "3 equals 1, too"
    assert printed.endswith("(rollback to generation 3)")
    assert following.startswith("  the next rollback goes to ") or following == "  there is nothing to roll back to"


def test_a_damaged_active_set_is_seen_and_repaired_as_written(damaged: LocalServer) -> None:
    """What PolyheadActiveSetDamaged says: the metric, the command in the status, the same command online, and it serves again."""
    page = scrape(damaged)
    assert page.value("polyhead_active_set_damaged") == 1
    assert page.value("polyhead_serving") == 0
    assert run(damaged, "health", "--timeout", "1").returncode == 1
    assert run(damaged, "health", "liveness").returncode == 0  # alive: whoever restarts what is not live leaves it alone
    status = run(damaged, "status").stdout
    proposed = re.search(r"^repair: stop the server, then run: polyhead heads rollback --to (\d+) --store /.*/store$", status, re.MULTILINE)
    assert proposed, status
    assert "StoreDamage(" not in status  # it showed the object's own form
    repaired = run(damaged, "heads", "rollback", "--to", proposed[1])
    assert repaired.returncode == 0, repaired.stderr
    assert run(damaged, "health").stdout == "SERVING\n"
    with Client(damaged.address, timeout=60) as client:
        assert fingerprint(client)
    eventually(lambda: scrape(damaged).value("polyhead_active_set_damaged") == 0)
    assert scrape(damaged).value("polyhead_serving") == 1
