"""The first run on a GPU that is there for minutes: parts in order of what a run must bring back, each a process with its own time and log.

A part that crashes, hangs or finds a package missing costs the others nothing. `make bench-gpu` is for a card that is there to stay.

usage: python -m polyhead.client.bench.gpu.first_run [--out DIR] [--budget SECONDS] [--device cuda] [--shape 8b] [PART ...]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FEWEST_S = 8  # a part that would get less is left out
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "POLYHEAD_TRUNK_DTYPE": "float32",  # of the tests' servers, as the next: what they say is compared with float32
    "POLYHEAD_HEAD_DTYPE": "float32",
}
SHOWN = re.compile(r"FAILED|EXACT|TB/s|share|step |GiB|longest|same tokens|serves|not used|passed|failed")


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
    Part("facts", 50, "0_facts.log"),
    Part("exact", 90, "1_exact.log"),
    Part("bf16", 130, "2_bf16.log"),
    Part("int8", 60, "3_eight_bit.log"),
    Part("fp8", 60, "3_eight_bit.log"),
    Part("race", 50, "4_race.log"),
    Part("profile", 60, "5_profile.log"),
    Part("large", 110, "6_large.log"),
    Part("tests", 70, "7_tests.log"),
)


def run(names: list[str], out: Path, budget_s: float, device: str, shape: str) -> None:
    """All of these parts, as far as the time goes; then the lines that matter."""
    out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + budget_s
    for part in PARTS:
        if part.name in names:
            _run_part(part, out / part.log, min(part.most_s, ends_at - time.monotonic()), part.command(device, shape), device)
    for log in sorted({out / part.log for part in PARTS if part.name in names}):
        print(*(line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if SHOWN.search(line)), sep="\n")


def _run_part(part: Part, log: Path, most_s: float, command: list[str], device: str) -> None:
    began_at = time.monotonic()
    with log.open("a", encoding="utf-8") as file:
        if most_s < FEWEST_S:
            status = "no time left"
        else:
            environment = {**os.environ, **ENVIRONMENT, "POLYHEAD_DEVICE": device}
            if part.name == "large":  # pieces of all sizes, up to the card's end
                environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
            try:
                done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=most_s, check=False)
                status = f"exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                status = "ended: it took too long"
    line = f"== {part.name}: {status} after {time.monotonic() - began_at:.0f} of {most_s:.0f} s"
    with log.open("a", encoding="utf-8") as file:
        print(line, file=file)
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(part.name for part in PARTS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "first-run")), help="folder of the logs")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for all of it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="8b", choices=["8b", "tiny"])
    given = parser.parse_args()
    names = given.parts or [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    run(names, given.out, given.budget, given.device, given.shape)


if __name__ == "__main__":
    main()
