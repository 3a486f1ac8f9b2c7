"""The container file, read instruction by instruction: what it copies, installs and starts is there, and it runs as nobody special."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from polyhead.server.config import ServeConfig
from tests.deploy.conftest import DEPLOY
from tests.guards.tree import PARTS, ROOT

INSTRUCTIONS = {
    "FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "VOLUME", "EXPOSE", "USER", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT",
}  # fmt: skip
PINNED = re.compile(r"[a-z0-9.-]+\.[a-z]+/[\w./-]+:[a-z]?\d+\.\d+[\w.-]*")  # registry, name and a tag with a version


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """(instruction, its text) of each stage; continued lines are joined, comments dropped."""
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            instruction, _, rest = line.partition(" ")
            assert instruction in INSTRUCTIONS, line
            if instruction == "FROM":
                found.append([])
            found[-1].append((instruction, rest.strip()))
    return found


def of(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [text for name, text in stage if name == instruction]


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    return dict(word.split("=", 1) for text in of(stage, "ENV") for word in shlex.split(text))


def test_two_stages_on_one_pinned_base(stages: list[list[tuple[str, str]]]) -> None:
    build, final = stages
    base = of(build, "FROM")[0].removesuffix(" AS build")
    assert PINNED.fullmatch(base), base
    assert of(final, "FROM") == [base]


def test_what_is_copied_exists_and_is_all_that_is_packaged(stages: list[list[tuple[str, str]]]) -> None:
    build, final = stages
    copied = {source for text in of(build, "COPY") for source in text.split()[:-1]}
    assert not [source for source in copied if not (ROOT / source).exists()]
    assert copied == {"pyproject.toml", "README.md", *(folder.split("/")[0] for folder in PARTS.values())}
    assert of(final, "COPY") == ["--from=build /opt/polyhead /opt/polyhead"]


def test_the_build_sees_what_it_copies_and_no_more(stages: list[list[tuple[str, str]]]) -> None:
    """The ignore file refuses everything, then lets in each source of a COPY."""
    lines = [line for line in (DEPLOY / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert lines[0] == "**"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert let_in == {source for text in of(stages[0], "COPY") for source in text.split()[:-1]}
    assert any(fnmatch.fnmatch("server/__pycache__", line) for line in lines[1:])


def test_what_is_installed_is_in_the_project(stages: list[list[tuple[str, str]]]) -> None:
    """The extras exist; torch is the release that everything is tested with, and a build of another kind fails the build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runs = " ; ".join(of(stages[0], "RUN"))
    extras = {extra for group in re.findall(r'"\.\[([\w,]+)\]"', runs) for extra in group.split(",")}
    assert extras
    assert extras <= set(project["optional-dependencies"])
    arguments = dict(text.split("=", 1) for text in of(stages[0], "ARG"))
    assert arguments["TORCH"] in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert arguments["ACCELERATOR"] == "cpu"
    assert runs.count('"$TORCH"') >= 2  # the project's own install may not take another one
    assert '"$ACCELERATOR"' in runs
    assert set(re.findall(r"\$(\w+)", runs)) <= arguments.keys(), "an argument that no ARG declares is empty"


def test_the_embedded_model_is_the_package_that_the_code_looks_for(stages: list[list[tuple[str, str]]]) -> None:
    from polyhead.heads.model.embedded import PACKAGE

    assert f"EMBEDDED_MODEL={PACKAGE}" in of(stages[0], "ARG")


def test_the_shell_lines_are_shell(stages: list[list[tuple[str, str]]]) -> None:
    for text in (text for stage in stages for text in of(stage, "RUN")):
        script = re.sub(r"^(--mount=\S+ +)+", "", text)
        done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False, timeout=10)
        assert done.returncode == 0, done.stderr


def test_it_runs_as_a_user_without_rights_and_owns_its_volumes(stages: list[list[tuple[str, str]]]) -> None:
    final = stages[1]
    [user] = of(final, "USER")
    uid, gid = user.split(":")
    assert int(uid) > 1000
    made = " ".join(of(final, "RUN"))
    assert f"--uid {uid} --gid {gid}" in made
    volumes = json.loads(of(final, "VOLUME")[0])
    install = re.search(r"install -d -o polyhead -g polyhead -m 0700 ([^&]+)", made)
    assert install
    assert install[1].split() == volumes
    names = [name for name, _ in final]
    assert names.index("RUN") < names.index("VOLUME") < names.index("USER") < names.index("ENTRYPOINT")


def test_models_and_heads_are_kept_in_the_volumes(stages: list[list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server itself makes of the image's variables lies in a volume."""
    from polyhead.heads.model import embedded

    variables, volumes = environment(stages[1]), json.loads(of(stages[1], "VOLUME")[0])
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, variables[name])
    places = [ServeConfig().store_dir, embedded.cache_folder(), Path(variables["HF_HOME"])]
    assert [next(volume for volume in volumes if place.is_relative_to(volume)) for place in places] == [volumes[0], volumes[1], volumes[1]]


def test_variables_are_settings(stages: list[list[tuple[str, str]]]) -> None:
    own = {name for name in environment(stages[1]) if name.startswith("POLYHEAD_")}
    assert own
    assert own <= {f"POLYHEAD_{name.upper()}" for name in ServeConfig.model_fields}


def test_ports_are_the_servers(stages: list[list[tuple[str, str]]]) -> None:
    fields = ServeConfig.model_fields
    assert of(stages[1], "EXPOSE") == [f"{fields['port'].default} {fields['metrics_port'].default}"]


def test_the_server_itself_gets_the_signals(stages: list[list[tuple[str, str]]]) -> None:
    """Exec form: with a shell between, SIGTERM would end the shell and nothing would drain."""
    final = stages[1]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    [entry] = of(final, "ENTRYPOINT")
    assert json.loads(entry) == ["polyhead", "serve"]
    assert "polyhead" in scripts
    assert of(final, "STOPSIGNAL") == ["SIGTERM"]


def test_the_health_check_is_a_command_that_exists(stages: list[list[tuple[str, str]]]) -> None:
    from typer.testing import CliRunner

    from polyhead.client.cli.app import build_app

    [check] = of(stages[1], "HEALTHCHECK")
    options, _, command = check.partition(" CMD ")
    words = json.loads(command)
    assert words[0] == "polyhead"
    assert CliRunner().invoke(build_app(words[1:]), [*words[1:], "--help"]).exit_code == 0
    assert re.fullmatch(r"--interval=\d+s --timeout=(\d+)s --start-period=\d+m --retries=\d", options)
    seconds = re.search(r"--timeout=(\d+)s", options)
    assert seconds
    assert int(seconds[1]) > 5, "longer than `polyhead health` itself waits"
