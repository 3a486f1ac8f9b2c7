"""The RL loop: draw, guard, update, keep, push. Each round ends in one activation of policy and value.

What a round changes is on disk before it is pushed: the rollouts, then the updated heads with their moments. So a run that ends anywhere,
by an interrupt, a full disk or a server that went away, leaves the server at its last activated pair, and the same run goes on from what
is on disk with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from polyhead.client import Client
from polyhead.heads.model.family import HeadModule
from polyhead.heads.training.checkpoints import Checkpoint, CheckpointFolder, of_main
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.guards import Measured, why_back
from polyhead.heads.training.rl.learner import Learner, NotFinite, order_of
from polyhead.heads.training.rl.pretraining import Pretraining, PretrainingTexts
from polyhead.heads.training.rl.prompts import PromptPool, Sourced, check_lengths, continue_dialogues
from polyhead.heads.training.rl.report import Drawn, RoundReport, round_report
from polyhead.heads.training.rl.rewards import Reward, check_answers, check_heads, num_scoring_tokens, spread_of
from polyhead.heads.training.rl.rollout import Roles, Rollout, draw
from polyhead.heads.training.rl.rollout_files import RolloutFolder
from polyhead.heads.training.rl.served import Arm, Pair
from polyhead.heads.training.rl.state import State
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.tensor_files import write_whole


@dataclass(frozen=True)
class Run:
    """Where an RL run finds what it needs."""

    client: Client
    pool: PromptPool
    reward: Reward
    folder: Path  # checkpoints, rollouts, rounds.jsonl
    name: str = ""  # of the arm: see served.py
    start_from: str = "policy"
    value_from: str = "value"  # or a preference head
    reference: str = "reference"
    self_play: float = 0.0  # share of a round's prompts that go on with the round before
    pretraining: Pretraining | None = None


OnRound = Callable[[RoundReport], None]
OnStage = Callable[[str, int], None]  # (what was just done, round): for tests that end a run there
OnNote = Callable[[str], None]


def train(
    run: Run,
    config: RLConfig,
    on_round: OnRound = lambda report: None,
    on_note: OnNote = lambda text: None,
    on_stage: OnStage = lambda stage, number: None,
) -> Learner:
    """Train until `config.rounds` are done and return both heads, the last pair active. Goes on with a run that the folder holds.

    Of several processes the main one calls `on_round` and `on_note`. Raises TrainingFailed after too many rollbacks, the last good pair
    active; RolloutFailed, RewardError and OtherTrainer; CheckpointMismatch for a folder of another run; the client's errors, OSError if
    the disk is full, and OtherProcessFailed.
    """
    loop = _Loop(run, config, on_note, on_stage)
    loop.start()
    while loop.state.number < config.rounds:
        if (report := loop.round()) is not None and loop.processes.is_main:
            on_round(report)
    return loop.learner


def push_average(run: Run, learner: Learner) -> str:
    """The policy's moving average as a version of its own name, "policy-average@1", not active."""
    name = f"{Arm(run.client, run.name).policy}-average"
    return f"{name}@{run.client.push_head(name, learner.policy_optimiser.average, kind='policy')}"


class _Loop:
    """One run under way."""

    def __init__(self, run: Run, config: RLConfig, on_note: OnNote, on_stage: OnStage) -> None:
        self.run, self.config = run, config
        self.processes = Processes.launched()
        self.on_note, self.on_stage = on_note if self.processes.is_main else lambda text: None, on_stage
        self.arm = Arm(run.client, run.name)
        names = {"name": run.name, "start_from": run.start_from, "value_from": run.value_from, "reference": run.reference}
        trunk = run.client.trunk()
        facts = {**names, **run.reward.identity, "trunk_id": trunk.trunk_id, "precision": trunk.precision, "self_play": run.self_play}
        facts["prompts_sha256"] = _hash_of(run.pool)
        facts |= run.pretraining.identity if run.pretraining else {}
        self.checkpoints = CheckpointFolder(run.folder / "checkpoints", {**config.identity, **facts}, keep=3)
        self.rollouts = RolloutFolder(run.folder / "rollouts")
        self.state = State()
        self.pair = Pair(0, 0)
        self.learner: Learner

    def start(self) -> None:
        """Both heads and their versions, from the folder or from the server."""
        on_main = self.processes.on_main
        if (found := of_main(self.processes, self._checked)) is None:
            self.pair, self.state = on_main(self._begun)
            self.learner = self._learner(*self._pulled(self.pair))
            self._keep()
        else:
            self.state = State.of(dict(found.facts))
            self.learner = self._learner(*self._modules())
            self._become(found)
            self.pair = on_main(lambda: self.arm.restore(self.learner, f"rl: resumed after round {self.state.number}"))
            self._write_log()
            self.on_note(f"going on after round {self.state.number} of {self.config.rounds}")

    def _checked(self) -> Checkpoint | None:
        check_heads(self.run.reward, self.run.reference, lambda name: self.run.client.head(name).kind)
        check_lengths(self.run.client, self.run.pool.prompts, self._most_prompt_tokens())
        return self.checkpoints.newest()

    def _most_prompt_tokens(self) -> int:
        """Of a prompt whose replies can be drawn and scored."""
        context = self.run.client.trunk().context_length
        return context - self.config.max_new_tokens - num_scoring_tokens(self.run.reward, self.run.client)

    def _begun(self) -> tuple[Pair, State]:
        """A new run's heads on the server."""
        check_answers(self.run.reward, self.run.client)  # before anything of the arm is made
        pair = self.arm.start(self.run.start_from, self.run.value_from)
        manifest = self.run.client.head(f"{self.arm.value}@{pair.value}").manifest
        return pair, State(value_bias=manifest.bias, value_scale=manifest.scale)

    def round(self) -> RoundReport | None:
        """One round; None if it went back instead."""
        number, seconds, cpu = self.state.number + 1, {}, time.process_time()
        self.processes.on_main(lambda: self.arm.check(self.pair))
        began_at = time.perf_counter()
        rollout = self._rollout(number)
        seconds["rollout"] = time.perf_counter() - began_at
        self.on_stage("rollout", number)
        if self.state.spread is None:
            self.state.spread = spread_of(reply.parts for reply in rollout.replies)
        rewards = [self.run.reward.reward(reply.parts, self.state.spread) for reply in rollout.replies]
        drawn = Drawn.of(rollout, rewards)
        measured = Measured(drawn.reward, drawn.reward_deviation, drawn.kl_per_token)
        if why := why_back(measured, self.state.measured, self.config):
            self._back(number, why, to=self.state.number - 1)
            return None
        if self.state.offset is None:
            self.state.offset = drawn.reward - rollout.mean_value
        targets = self.learner.targets(rollout.replies, [reward - self.state.offset for reward in rewards])
        try:
            value_only = number <= self.config.value_only_rounds
            update = self.learner.update(rollout.groups, targets, self._seed(number), 0.5**self.state.attempt, value_only)
        except NotFinite as error:
            self._back(number, str(error), to=self.state.number)
            return None
        seconds |= update.seconds
        self.on_stage("update", number)
        version, metrics = self.pair.policy, {"round": float(number), "rollout_reward": drawn.reward, "rollout_kl": drawn.kl}
        cpu_seconds = self.processes.sums([time.process_time() - cpu])[0]
        report = round_report(number, version, drawn, update, seconds, cpu_seconds, rollout)
        self.state.continued = self.processes.on_main(lambda: self._self_play(rollout, number))
        self.state.number, self.state.measured = number, [*self.state.measured, measured]
        self.state.reports = [*self.state.reports, report.plain()]
        began_at = time.perf_counter()
        self._keep()
        self._took(report, "checkpoint", began_at)
        self.on_stage("checkpoint", number)
        began_at = time.perf_counter()
        learner = self.learner
        self.pair = self.processes.on_main(lambda: self.arm.push(learner.policy, learner.value, metrics, f"rl: round {number}"))
        self._took(report, "push", began_at)
        self.on_stage("push", number)
        self._write_log()
        return report

    def _took(self, report: RoundReport, part: str, began_at: float) -> None:
        """The time of a part that comes after the report was made."""
        report.seconds[part] = self.state.reports[-1]["seconds"][part] = time.perf_counter() - began_at

    def _rollout(self, number: int) -> Rollout:
        """This process's share of the stored one, where the round was cut short, or of a new one."""
        drawn: list[Rollout] = []
        self.processes.on_main(lambda: drawn.append(self._drawn(number)))
        if self.processes.count == 1:
            return drawn[0]
        shuffle = torch.Generator().manual_seed(self._seed(number))
        return self.processes.scatter(drawn and drawn[0].shared_out(order_of(len(drawn[0].groups), shuffle), self.processes.count))

    def _drawn(self, number: int) -> Rollout:
        found = self.rollouts.load(number, self.state.attempt)
        if found is None:
            roles = Roles(f"{self.arm.policy}@{self.pair.policy}", f"{self.arm.value}@{self.pair.value}", self.run.reference)
            found = draw(self.run.client, self._prompts(number), roles, self.run.reward, self.config, self._seed(number))
            self.rollouts.save(found, number, self.state.attempt)
        return found

    def _prompts(self, number: int) -> list[Sourced]:
        continued = [(prompt, source) for prompt, source in self.state.continued]
        return [*continued, *self.run.pool.of_round(number, self.config.prompts)][: self.config.prompts]

    def _self_play(self, rollout: Rollout, number: int) -> list[Sourced]:
        count = round(self.run.self_play * self.config.prompts)
        head = f"{self.arm.policy}@{self.pair.policy}"
        if not count:
            return []
        return continue_dialogues(self.run.client, rollout, count, head, self._seed(number), self._most_prompt_tokens())

    def _seed(self, number: int) -> int:
        return (self.config.seed * 1009 + self.state.attempt) * 1_000_003 + number

    def _back(self, number: int, why: str, to: int) -> None:
        """Return to the heads after round `to`, activate them, and go on more slowly.

        Where those are no longer kept, after one step back upon another, to the oldest ones that are.
        """
        attempt = self.state.attempt + 1
        # every step back has deleted the later ones
        found = of_main(self.processes, lambda: self.checkpoints.at(max(0, to)) or self.checkpoints.newest())
        assert found is not None, "a run keeps its beginning"
        self._become(found)
        self.state.attempt = attempt
        self._keep()
        self.processes.on_main(lambda: self.checkpoints.forget_after(self.state.number))
        note = f"round {number}: {why}; back to the heads after round {self.state.number}, at half the learning rates"
        self.pair = self.processes.on_main(lambda: self.arm.restore(self.learner, f"rl: back to round {self.state.number}"))
        if attempt > self.config.most_rollbacks:
            raise TrainingFailed(f"{note}\nhint: the run ends after {attempt} rollbacks; lower --learning-rate, or raise --kl-weight")
        self.on_note(note)

    def _become(self, checkpoint: Checkpoint) -> None:
        self.state = State.of(dict(checkpoint.facts))
        self.learner.restore(dict(checkpoint.tensors), checkpoint.facts["num_updates"])

    def _keep(self) -> None:
        facts = {**self.state.facts(), "num_updates": list(self.learner.num_updates)}
        self.processes.on_main(lambda: self.checkpoints.save(Checkpoint(self.state.number, self.learner.tensors(), facts)))

    def _learner(self, policy: HeadModule, value: HeadModule) -> Learner:
        mixed = self.run.pretraining
        texts = None
        if mixed is not None:
            states = StateStore(self.run.client, self.run.folder / "states")
            texts = PretrainingTexts(self.run.client, mixed, states, self.config.seed)
        return Learner(policy, value, self.config, self.state.value_bias, self.state.value_scale, texts, self.processes)

    def _pulled(self, pair: Pair) -> tuple[HeadModule, HeadModule]:
        return (
            pull_module(self.run.client, f"{self.arm.policy}@{pair.policy}"),
            pull_module(self.run.client, f"{self.arm.value}@{pair.value}"),
        )

    def _modules(self) -> tuple[HeadModule, HeadModule]:
        """Heads of the right shape, whose weights a checkpoint replaces."""
        active = {head.name for head in self.run.client.heads() if head.active}
        policy = self.arm.policy if self.arm.policy in active else self.run.start_from
        return pull_module(self.run.client, policy), pull_module(self.run.client, self.run.value_from)

    def _write_log(self) -> None:
        lines = "".join(f"{json.dumps(each)}\n" for each in self.state.reports)
        self.processes.on_main(lambda: write_whole(self.run.folder / "rounds.jsonl", lines.encode()))


def _hash_of(pool: PromptPool) -> str:
    return hashlib.sha256(json.dumps(list(pool.prompts)).encode()).hexdigest()
