"""What is installed is what is in the tree: packages, data files, a real wheel, and a client that needs the base install alone."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.guards.tree import PARTS, ROOT, python_files

HEAVY = ("torch", "transformers", "typer", "rich", "pydantic", "yaml", "prometheus_client")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what is packaged: setuptools leaves a build folder in the tree that it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for folder in {folder.split("/")[0] for folder in PARTS.values()}:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    [built] = out.glob("polyhead-*.whl")
    return built


def test_packages_are_the_folders_that_hold_python(project: dict[str, Any]) -> None:
    setup = project["tool"]["setuptools"]
    folders = {}
    for package, top in PARTS.items():
        for folder in {path.parent for path in python_files() if path.is_relative_to(ROOT / top)}:
            inner = folder.relative_to(ROOT / top).parts
            folders[".".join([package, *inner])] = str(folder.relative_to(ROOT))
    assert len(setup["packages"]) == len(set(setup["packages"]))
    assert set(setup["packages"]) == folders.keys()
    assert setup["package-dir"] == folders


def test_every_data_pattern_matches(project: dict[str, Any]) -> None:
    setup = project["tool"]["setuptools"]
    for package, patterns in setup["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / setup["package-dir"][package]).glob(pattern)), f"{package}: {pattern}"


def test_every_data_file_is_packaged(wheel: Path) -> None:
    """What lies beside the code and is no Python is read by the code: each such file is in the wheel."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    for package, top in PARTS.items():
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = f"{package.replace('.', '/')}/{path.relative_to(ROOT / top)}"
                assert name in inside, name


def test_the_wheel_says_what_it_needs(wheel: Path, project: dict[str, Any]) -> None:
    """Five base requirements, everything else behind an extra; the command; nothing but polyhead at the top."""
    with zipfile.ZipFile(wheel) as archive:
        [info] = {name.split("/")[0] for name in archive.namelist()} - {"polyhead"}
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "polyhead = polyhead.client.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert {re.split(r"[<>=\s]", line.split()[1])[0] for line in base} == {
        re.split(r"[<>=]", requirement)[0] for requirement in project["project"]["dependencies"]
    }
    assert len(base) == 5


def test_the_client_needs_the_base_install_alone(wheel: Path, tmp_path: Path, project: dict[str, Any]) -> None:
    """From the wheel, beside the base requirements and theirs and nothing else: it imports, and pulls in nothing heavy."""
    target, beside = tmp_path / "target", tmp_path / "beside"
    zipfile.ZipFile(wheel).extractall(target)
    for requirement in project["project"]["dependencies"]:
        link_distribution(re.split(r"[<>=]", requirement)[0], beside, set())
    code = f"""
import sys
sys.path[:0] = [{str(target)!r}, {str(beside)!r}]
import polyhead.client
assert polyhead.client.__file__.startswith({str(target)!r}), polyhead.client.__file__
with polyhead.client.Client("127.0.0.1:1") as client:
    try:
        client.status()
    except polyhead.client.PolyheadError as error:
        pass
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
import polyhead.client.cli.main
polyhead.client.cli.main.main()
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr == "error: the command line needs two more packages\nhint: pip install 'polyhead[cli]'\n"
    assert done.returncode == 1


def test_importing_the_client_loads_nothing_heavy() -> None:
    """Where everything is installed, too: `import polyhead.client` stays a matter of a moment."""
    code = f"import sys, polyhead.client; assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def link_distribution(name: str, beside: Path, seen: set[str]) -> None:
    """Link an installed distribution's files, and those of what it needs, into `beside`."""
    if name.lower() in seen:
        return
    seen.add(name.lower())
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            link = beside / file
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(Path(str(file.locate())))
    for requirement in distribution.requires or []:
        if ";" not in requirement:
            link_distribution(re.split(r"[<>=!~\s\[(]", requirement)[0], beside, seen)
