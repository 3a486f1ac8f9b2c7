"""`make rlhf-evidence`: all runs of a plan on the embedded model, one result file each. The same command goes on after any end."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from polyhead.client import Client
from polyhead.client.errors import PolyheadError
from polyhead.client.local import local_server
from polyhead.client.rlhf.evidence.plan import DEFAULT, Plan
from polyhead.client.rlhf.evidence.runs import Evidence
from polyhead.heads.model import embedded
from polyhead.heads.training.rl.served import OtherTrainer

HINT = "hint: the same command goes on: finished runs are kept, the one under way goes on from its last round"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all runs are finished, or the budget is spent."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # hours: the log is to show how far it is
    try:
        plan = Plan.read(options.plan)
        embedded.prepare(print)
        options.folder.mkdir(parents=True, exist_ok=True)
        flags = ["--store", str(options.folder / "heads"), "--keep-versions", "4", *options.serve.split()]
        with local_server(flags) as server, Client(server.address, timeout=1800.0) as client:
            client.wait_ready(600.0)
            num_left = Evidence(client, plan, options.folder).run(options.budget)
    except KeyboardInterrupt:
        print(f"interrupted\n{HINT}", file=sys.stderr)
        return 130
    except (PolyheadError, OtherTrainer, OSError) as error:
        print(f"error: {error}\n{HINT}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"the budget is spent, {num_left} runs are left\n{HINT}" if num_left else f"all runs are finished: {options.folder / 'results'}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make rlhf-evidence ARGS=...", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="results, checkpoints and the server's heads")
    parser.add_argument("--plan", type=Path, default=DEFAULT, help="seeds, arms and hyper-parameters; default: the one in the repository")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="MINUTES", help="no run begins after these")
    parser.add_argument("--threads", type=int, default=1, help="of the trainer; two busy processes on two cores wait for each other")
    parser.add_argument("--serve", default="", help="flags for polyhead serve")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
