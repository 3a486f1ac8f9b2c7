"""`make rlhf-evidence`: all runs of a plan on the embedded model, one result file each. The same command goes on after any end.

Plans by name: `plan` (three arms, several seeds), `learned` (learned heads that learn anew), `conflict` and `lighter` (the same from
other judgements, and with other weights), `freezing` (what a frozen trunk costs), `sharing` (what sharing it buys).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from polyhead.client import Client
from polyhead.client.errors import PolyheadError
from polyhead.client.interrupt import repeated_interrupt
from polyhead.client.local import local_server
from polyhead.client.rlhf.evidence.arms.plan import ArmsPlan
from polyhead.client.rlhf.evidence.arms.runs import Arms
from polyhead.client.rlhf.evidence.freezing.plan import FreezingPlan
from polyhead.client.rlhf.evidence.freezing.runs import Freezing, UnitFailed, in_process_of_its_own, served
from polyhead.client.rlhf.evidence.learned.plan import LearnedPlan
from polyhead.client.rlhf.evidence.learned.runs import LearnedHeads
from polyhead.client.rlhf.evidence.plan import PlanError, experiment_of
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.sharing.plan import SERVED, SharingPlan
from polyhead.client.rlhf.evidence.sharing.plan import Unit as SharingUnit
from polyhead.client.rlhf.evidence.sharing.served import measure_rounds
from polyhead.heads.model import embedded
from polyhead.heads.training.rl.served import OtherTrainer

PLANS = Path(__file__).parent
HINT = "hint: the same command goes on: finished runs are kept, the one under way goes on from its last round"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all runs are finished, or the budget is spent."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # hours: the log is to show how far it is
    try:
        path = options.plan if options.plan.suffix else PLANS / f"{options.plan}.json"
        with repeated_interrupt():
            num_left = EXPERIMENTS[experiment_of(path, EXPERIMENTS)](path, options)
    except KeyboardInterrupt:
        print(f"interrupted\n{HINT}", file=sys.stderr)
        return 130
    except (PolyheadError, OtherTrainer, UnitFailed, OSError) as error:
        print(f"error: {error}\n{HINT}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.unit:
        print(_ending(num_left, options.folder))
    return 0


def _ending(num_left: int, folder: Path) -> str:
    return f"the budget is spent, {num_left} runs are left\n{HINT}" if num_left else f"all runs are finished: {folder / 'results'}"


def _arms(path: Path, options: argparse.Namespace) -> int:
    """How many runs are left."""
    plan = ArmsPlan.read(path)
    with _served(options) as client:
        return Arms(client, plan, options.folder).run(options.budget)


def _freezing(path: Path, options: argparse.Namespace) -> int:
    """Each unit in a process of its own, which is this command with --unit."""
    plan, model = FreezingPlan.read(path), embedded.prepare(print)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Freezing(plan, options.folder, model, served(model, options.folder, options.serve.split()))
    if not options.unit:
        threads = ["--threads", str(options.threads), *([f"--serve={options.serve}"] if options.serve else [])]
        command = [sys.executable, "-m", "polyhead.client.rlhf.evidence.command", "--plan", str(path), "--folder", str(options.folder)]
        return work.run(options.budget, in_process_of_its_own([*command, *threads, "--unit"]))
    chosen = [unit for unit in plan.units() if unit.name == options.unit]
    if not chosen:
        raise PlanError(f"{path} has no unit of this name: {options.unit}")
    work.unit(chosen[0])
    return 0


def _learned(path: Path, options: argparse.Namespace) -> int:
    """How many units are left. More versions are kept: heads of an earlier stage, which a run that was cut short starts from."""
    plan = LearnedPlan.read(path)
    with _served(options, keep=12) as client:
        return LearnedHeads(client, plan, options.folder).run(options.budget)


def _sharing(path: Path, options: argparse.Namespace) -> int:
    """The rounds on a served trunk; those of TRL have a command of their own."""
    plan = SharingPlan.read(path)
    unit, results = SharingUnit(SERVED), Results(options.folder, plan)
    if results.find(unit) is None:
        with _served(options) as client:
            results.keep(unit, measure_rounds(client, plan, options.folder / "runs" / unit.name))
        shutil.rmtree(options.folder / "runs" / unit.name)
    return 0


EXPERIMENTS: dict[str, Callable[[Path, argparse.Namespace], int]] = {
    "arms": _arms,
    "freezing": _freezing,
    "learned": _learned,
    "sharing": _sharing,
}


@contextlib.contextmanager
def _served(options: argparse.Namespace, keep: int = 4) -> Iterator[Client]:
    """A server on the embedded model for all runs."""
    embedded.prepare(print)
    options.folder.mkdir(parents=True, exist_ok=True)
    flags = ["--store", str(options.folder / "heads"), "--keep-versions", str(keep), *options.serve.split()]
    with local_server(flags) as server, Client(server.address, timeout=1800.0) as client:
        client.wait_ready(600.0)
        yield client


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make rlhf-evidence ARGS=...", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="results, checkpoints and the server's heads")
    parser.add_argument("--plan", type=Path, default=Path("plan"), help="plan, learned, conflict, lighter, freezing, sharing, or a file")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="MINUTES", help="no run begins after these")
    parser.add_argument("--threads", type=int, default=1, help="of the trainer; two busy processes on two cores wait for each other")
    parser.add_argument("--unit", default="", metavar="NAME", help="of a plan whose units have processes of their own: do this one")
    parser.add_argument("--serve", default="", help="flags for polyhead serve")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
