"""`make rlhf`: base rates, three arms of RL side by side, and what became of each on held-out questions.

A server process is started on the embedded model; this process is its client and its trainer, and never holds the trunk. What is finished
stays in --folder: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import io
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polyhead.client import Client, Sample
from polyhead.client.errors import PolyheadError
from polyhead.client.interrupt import repeated_interrupt
from polyhead.client.local import local_server
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.arms import ARMS, PREFERENCE, RULE, Arm, train_judged_heads
from polyhead.client.rlhf.measure import ask, base_rates, measure, of_samples, read_questions, sample, shown_replies
from polyhead.client.rlhf.memory import memory
from polyhead.client.rlhf.page import page, plots, table
from polyhead.heads.model import embedded
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.learner import Learner
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.rollout import RolloutFailed
from polyhead.heads.training.rl.served import Arm as Served
from polyhead.heads.training.rl.served import OtherTrainer
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.tensor_files import write_whole
from polyhead.heads.training.verify import verify


class Story:
    """The demonstration, a method a chapter; every result is kept in `folder` as soon as it is there."""

    def __init__(self, client: Client, options: argparse.Namespace, folder: Path) -> None:
        self.client, self.options, self.folder = client, options, folder
        self.train, self.held_out = read_questions(options.train_questions, options.held_out)
        self.heads = [PREFERENCE, RULE] if options.reward == "heads" else []
        self.tokens = options.tokens
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = folder / "results.json"
        empty = {"arms": {}, "seconds": 0.0, "cpu_seconds": 0.0}
        self.results: dict[str, Any] = json.loads(self.kept.read_text()) if self.kept.exists() else empty
        told = {name: value for name, value in vars(options).items() if name not in ("folder", "page", "note", "threads")}
        if self.results.setdefault("options", told) != told:
            raise ValueError(f"{folder} holds a run with other options: {self.results['options']}\nhint: give another --folder")

    def run(self) -> dict[str, Any]:
        """All chapters that are not there yet."""
        source = inspect.getsource(judges)
        print(f"two judges, in place of people:\n\n{source[source.index('_FIRST_PERSON') : source.index('def verdicts')].rstrip()}\n")
        if "base" not in self.results:
            self.base_rates()
        for arm in ARMS:
            if arm.name not in self.results["arms"]:
                self.arm(arm)
        return self.results

    @functools.cached_property
    def base(self) -> list[Sample]:
        """The reference's replies to the held-out questions, as measured ones are drawn."""
        return sample(self.client, "reference", self.held_out, self.options.held_out_samples, self.heads, self.tokens)

    def base_rates(self) -> None:
        """How often the judges are content with the base, and the learned heads if they are to reward."""
        began_at = time.monotonic()
        drawn = sample(self.client, "reference", self.train, self.options.base_samples, [], self.tokens, seed=7)
        rates = base_rates(drawn)
        self.results |= {"spread": rates.spread, "base_rates": dataclasses.asdict(rates)}
        if self.heads:
            held = sample(self.client, "reference", self.held_out, self.options.base_samples, [], self.tokens, seed=8)
            learned = train_judged_heads(self.client, self.train, drawn, self.held_out, held, self.folder)
            self.results["learned"] = dataclasses.asdict(learned)
            print(f"learned heads, held out: {learned}")
        replies = shown_replies(self.client, "reference", self.held_out, self.tokens)
        self.results["base"] = dataclasses.asdict(of_samples(self.base, self.base, self.heads, replies))
        self.results |= {"shown_questions": self.held_out[: len(replies)], "held_out_replies": len(self.base)}
        print(f"base rates of {len(drawn)} replies: {self.results['base_rates']}")
        self._keep(began_at)

    def arm(self, arm: Arm) -> None:
        """Train one arm and measure it."""
        began_at = time.monotonic()
        print(f"\narm {arm.name}: {arm.preference_weight:g} x preference / spread + {arm.rule_weight:g} x rule kept")
        config = RLConfig(rounds=self.options.rounds, prompts=self.options.prompts, max_new_tokens=self.tokens, kl_limit=0.8)
        config = dataclasses.replace(config, learning_rate=self.options.learning_rate)
        pool = PromptPool([(ask(question), "questions") for question in self.train], seed=config.seed)
        reward = arm.reward(self.options.reward, self.results["spread"])
        run = rounds.Run(self.client, pool, reward, self.folder / arm.name, arm.name, start_from="reference")
        learner = rounds.train(run, config, lambda report: print(report.line(config.rounds)), print)
        head = Served(self.client, arm.name).policy
        measured = measure(self.client, head, self.held_out, self.base, self.heads, self.options.held_out_samples, self.tokens)
        lines = (self.folder / arm.name / "rounds.jsonl").read_text().splitlines()
        self.results["arms"][arm.name] = {
            "measure": dataclasses.asdict(measured),
            "rounds": [json.loads(line) for line in lines],
            "gap": self._gap(learner, head),
            "memory": memory(learner, self.client),
        }
        self._keep(began_at)
        print(f"held out, after {time.monotonic() - began_at:.0f} s:\n{table(self.results)}")

    def _gap(self, learner: Learner, head: str) -> float:
        """Between the trainer's head and the served one, on base replies."""
        items = [(list(each.prompt_token_ids), list(each.token_ids)) for each in self.base[:4]]
        return verify(self.client, learner.policy, head, items, StateStore(self.client, self.folder / "states"))

    def took(self, cpu_seconds: float) -> None:
        """Count the CPU time of server and trainer."""
        self.results["cpu_seconds"] += cpu_seconds
        self._keep(time.monotonic())

    def _keep(self, began_at: float) -> None:
        self.results["seconds"] += time.monotonic() - began_at
        write_whole(self.kept, json.dumps(self.results, indent=1).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a server on the embedded model and tell the story."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a run takes minutes: its log is to show how far it is
    embedded.prepare(print)
    with tempfile.TemporaryDirectory(prefix="polyhead-rlhf-") as temporary:
        folder = options.folder or Path(temporary)
        try:
            with repeated_interrupt():
                results = _told(options, folder)
        except KeyboardInterrupt:
            print("interrupted\nhint: with --folder FOLDER the same command goes on with what is finished", file=sys.stderr)
            return 130
        except (ValueError, PolyheadError, TrainingFailed, RolloutFailed, OtherTrainer) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"\n{table(results)}\n\n{results['seconds']:.0f} s in all, {results['cpu_seconds']:.0f} s of CPU of server and trainer")
        if options.page is not None:
            command = _command(arguments if arguments is not None else sys.argv[1:])
            _write_page(options.page, {**results, "note": options.note}, command)
    return 0


def _told(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The story on a server of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _cpu_seconds()
    flags = ["--store", str(folder / "heads"), "--keep-versions", "4", *options.serve.split()]
    with local_server(flags) as server, Client(server.address, timeout=1800.0) as client:
        client.wait_ready(600.0)
        story = Story(client, options, folder)
        story.run()
    story.took(_cpu_seconds() - before)
    return story.results


def _cpu_seconds() -> float:
    """Of this process, and of the servers that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _command(arguments: Sequence[str]) -> str:
    """As a reader would type it: without what says where this run's files go."""
    parser = argparse.ArgumentParser(add_help=False)
    for own in ("--folder", "--page", "--note"):
        parser.add_argument(own)
    left = " ".join(parser.parse_known_args(arguments)[1])
    return f"make rlhf ARGS='{left}'" if left else "make rlhf"


def _write_page(path: Path, results: dict[str, Any], command: str) -> None:
    images = path.parent.parent / "images"
    for folder in (images, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    (images / "rlhf-rounds.svg").write_text(plots(results), encoding="utf-8")
    cores = f"{os.cpu_count()} cores of {platform.machine()}"
    machine = f"{cores}, torch {torch.__version__}, torch threads of the trainer: {torch.get_num_threads()}"
    path.write_text(page(results, command, machine), encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make rlhf ARGS=...", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--reward", choices=["judge", "heads"], default="judge", help="the judges, or heads that learned from them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=6, help="of one round, four samples each")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of the policies")
    parser.add_argument("--tokens", type=int, default=16, help="of a reply at most")
    parser.add_argument("--train-questions", type=int, default=160)
    parser.add_argument("--base-samples", type=int, help="replies to each question for base rates; 1, or 8 that heads learn from")
    parser.add_argument("--held-out", type=int, default=20, help="questions")
    parser.add_argument("--held-out-samples", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of the trainer; two busy processes on two cores wait for each other")
    parser.add_argument("--serve", default="", help="flags for polyhead serve")
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is finished; the same command goes on from it")
    parser.add_argument("--page", type=Path, default=None, help="write a page with table and plots")
    parser.add_argument("--note", default="", help="a sentence for the page about the machine")
    options = parser.parse_args(arguments)
    options.base_samples = options.base_samples or (8 if options.reward == "heads" else 1)
    return options


if __name__ == "__main__":
    sys.exit(main())
