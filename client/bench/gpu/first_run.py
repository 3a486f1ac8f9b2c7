"""The first run on a GPU that is there for minutes: parts in order of what a run must bring back, each a process with its own time and log.

A part that crashes, hangs or finds a package missing costs the others nothing; one that hangs says where. If the first part cannot even
be imported, none could, and the run ends at once. `make bench-gpu` is for a card that is there to stay.

It needs a checkout and nothing installed of it: python3 client/bench/gpu/first_run.py works, too.

usage: python -m polyhead.client.bench.gpu.first_run [--out DIR] [--budget SECONDS] [--wheels DIR] [--device cuda] [--shape 8b] [PART ...]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FEWEST_S = 8  # a part that would get less is left out
LAST_WORDS_S = 5  # that a part which takes too long has to say where it is
CANNOT_BEGIN = 2  # exit status
PACKAGES = ("torch", "triton", "transformers", "numpy", "numba", "grpcio", "protobuf", "googleapis-common-protos", "safetensors")
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "POLYHEAD_TRUNK_DTYPE": "float32",  # of the tests' servers, as the next: what they say is compared with float32
    "POLYHEAD_HEAD_DTYPE": "float32",
}
SHOWN = re.compile(r"FAILED|EXACT|TB/s|share|step |GiB|longest|same tokens|serves|attention|graphs|not used|passed|failed|==\d|\w+Error:")
BEGUN = re.compile(r"^\[ *[\d.]+\] -- ", re.MULTILINE)  # what a part says once it is imported
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    name: str
    most_s: int
    log: str

    def command(self, device: str, shape: str) -> list[str]:
        if self.name == "tests":
            options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "default", "-o", "timeout=60", "-m", "not long"]
            return [sys.executable, "-m", "pytest", *options, "tests/e2e/test_generate.py", "tests/e2e/test_swap.py"]
        return [sys.executable, "-m", "polyhead.client.bench.gpu.parts", self.name, device, shape]


PARTS = (
    Part("facts", 75, "0_facts.log"),
    Part("exact", 90, "1_exact.log"),
    Part("bf16", 130, "2_bf16.log"),
    Part("int8", 60, "3_eight_bit.log"),
    Part("fp8", 60, "3_eight_bit.log"),
    Part("race", 50, "4_race.log"),
    Part("profile", 60, "5_profile.log"),
    Part("large", 110, "6_large.log"),
    Part("tests", 70, "7_tests.log"),
)


def run(names: list[str], out: Path, budget_s: float, device: str, shape: str, path: str = "") -> int:
    """All of these parts, as far as the time goes; then the lines that matter. `path`: PYTHONPATH of the parts.

    The exit status: 0 if every part ended with 0, CANNOT_BEGIN if the first one could not be imported, else 1.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends_at, failed = time.monotonic() + budget_s, 0
    environment = {**os.environ, **ENVIRONMENT, "POLYHEAD_DEVICE": device, **({"PYTHONPATH": path} if path else {})}
    _say(out / PARTS[0].log, versions(path), card())
    parts = [part for part in PARTS if part.name in names]
    for part in parts:
        log = out / part.log
        begins_at = log.stat().st_size if log.exists() else 0
        is_fine = _run_part(part, log, min(part.most_s, ends_at - time.monotonic()), part.command(device, shape), environment)
        failed |= not is_fine
        said = log.read_bytes()[begins_at:].decode(errors="replace")
        if part is parts[0] and not is_fine and part.name != "tests" and budget_s >= FEWEST_S and not BEGUN.search(said):
            print(said[-3000:])
            print("no part can begin: all of them import what this one does\nhint: bring what is missing as wheels: --wheels DIR")
            return CANNOT_BEGIN
    for log in sorted({out / part.log for part in parts}):
        print(*(line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if SHOWN.search(line)), sep="\n")
    return failed


def _run_part(part: Part, log: Path, most_s: float, command: list[str], environment: Mapping[str, str]) -> bool:
    """Whether it ended with 0."""
    began_at = time.monotonic()
    if most_s < FEWEST_S:
        status = "no time left"
    else:
        full = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # pieces of all sizes, up to the card's end
        with log.open("ab") as file:
            status = _ended(command, file.fileno(), {**environment, **(full if part.name == "large" else {})}, most_s)
    _say(log, f"== {part.name}: {status} after {time.monotonic() - began_at:.0f} of {most_s:.0f} s")
    return status == "exit status 0"


def _ended(command: list[str], output: int, environment: Mapping[str, str], most_s: float) -> str:
    """How it ended. What it has started ends with it: a server that stays would keep the card's memory."""
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        return f"exit status {process.wait(most_s)}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python's fault handler writes where each thread is
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS_S)
        return "ended: it took too long"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process within a call of the driver may not end
            process.wait(LAST_WORDS_S)


def _say(log: Path, *lines: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        for line in lines:
            print(line, file=file)
            print(line, flush=True)


def versions(path: str) -> str:
    """Of what the parts import, none of which is imported for it."""
    sites = [*path.split(os.pathsep), *sys.path] if path else sys.path
    found = {package: importlib.metadata.distributions(name=package, path=sites) for package in PACKAGES}
    first = {package: next((each.version for each in those), "none") for package, those in found.items()}
    return "  ".join([f"python=={sys.version.split()[0]}", *(f"{package}=={version}" for package, version in first.items())])


def card() -> str:
    """What the driver says of it."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"no card is known: {error}"


def python_path(wheels: Path | None, folder: Path) -> str:
    """Where parts find the packages of these wheels, and this checkout if it is not installed: in an empty `folder`."""
    if wheels is not None:
        _install(sorted(wheels.glob("*.whl")), folder)
    if importlib.util.find_spec("polyhead") is None:
        (folder / "polyhead").mkdir()
        for name, target in {"heads": "heads", "server": "server", "client": "client", "v1": "protos/polyhead/v1"}.items():
            (folder / "polyhead" / name).symlink_to(ROOT / target)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])])


def _install(wheels: list[Path], folder: Path) -> None:
    """All at once, or one by one, so that a bad one costs itself alone."""
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--upgrade", "--target"]
    install = [sys.executable, "-m", "pip", "install", *options, str(folder)]
    with contextlib.suppress(subprocess.SubprocessError):
        subprocess.run([*install, *map(str, wheels)], timeout=90, check=True)
        return
    for wheel in wheels:
        try:
            subprocess.run([*install, str(wheel)], timeout=30, check=True)
        except subprocess.SubprocessError as error:
            print(f"not installed: {wheel.name}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(part.name for part in PARTS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "first-run")), help="folder of the logs")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for all of it")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that are missing here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="8b", choices=["8b", "tiny"])
    given = parser.parse_args()
    names = given.parts or [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polyhead-first-run-") as folder:
        path = python_path(given.wheels, Path(folder))
        failed = run(names, given.out, given.budget - (time.monotonic() - began_at), given.device, given.shape, path)
    sys.exit(failed)


if __name__ == "__main__":
    main()
