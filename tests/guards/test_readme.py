"""README and guide are true: their Python runs against a real server, and the help that is shown is the command line's own.

    <!-- runs -->                   the next block, ```python, is executed; all such blocks share one namespace, in order
    <!-- help: polyhead serve -->   the next block, ```text, is what `polyhead serve --help` prints at 100 columns

`python -m tests.guards.test_readme` writes the help blocks anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.guards.tree import ROOT

README, GUIDE = ROOT / "README.md", ROOT / "GUIDE.md"
DEFAULT_ADDRESS = "127.0.0.1:50051"
RUNS = re.compile(r"^<!-- runs -->\s*\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
HELP = re.compile(r"^(<!-- help: (polyhead[\w -]*?) -->\s*\n```text\n)(.*?)(^```)", re.MULTILINE | re.DOTALL)


def readme() -> str:
    return README.read_text(encoding="utf-8")


def help_text(command: str) -> str:
    """What `COMMAND --help` prints, plain, without the blank space around it."""
    plain = {"TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    name, *arguments = command.split()
    script = Path(sys.executable).parent / name
    env = {key: value for key, value in os.environ.items() if not key.startswith("POLYHEAD_")} | plain
    done = subprocess.run([str(script), *arguments, "--help"], capture_output=True, text=True, timeout=60, check=True, env=env)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()) + "\n"


@pytest.mark.smollm
@pytest.mark.usefixtures("smollm")  # puts the first heads back, whatever the README activates
def test_python_blocks_run(smollm_server: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In order, in one namespace, as a reader would paste them: assertions in them hold, nothing raises."""
    texts = [(path, path.read_text(encoding="utf-8")) for path in (README, GUIDE)]
    blocks = [(path, match[1], text[: match.start(1)].count("\n")) for path, text in texts for match in RUNS.finditer(text)]
    assert {path for path, _, _ in blocks} == {README, GUIDE}, "no block is marked <!-- runs -->"
    monkeypatch.setenv("POLYHEAD_SERVER", smollm_server.address)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for path, code, line in blocks:
        source = "\n" * line + code.replace(DEFAULT_ADDRESS, smollm_server.address)  # a traceback names the document's own line
        exec(compile(source, str(path), "exec"), namespace)


def test_help_is_the_command_lines() -> None:
    shown = {match[2]: match[3] for match in HELP.finditer(readme())}
    assert "polyhead serve" in shown, "README.md has no block marked <!-- help: polyhead serve -->"
    for command, text in shown.items():
        assert text.strip() == help_text(command).strip(), f"python -m tests.guards.test_readme, then commit: {command}"


def main() -> None:
    """Write the help blocks anew."""
    README.write_text(HELP.sub(lambda found: f"{found[1]}{help_text(found[2])}{found[4]}", readme()), encoding="utf-8")


if __name__ == "__main__":
    main()
