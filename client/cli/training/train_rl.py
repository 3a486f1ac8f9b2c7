"""`polyhead train rl`: reinforcement learning of a served policy. torch is imported when a run begins."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyhead.client.cli.session import Session, connected, require_torch
from polyhead.client.cli.training.endings import sentences
from polyhead.client.cli.training.events import event_writer

if TYPE_CHECKING:
    from polyhead.client import Rule
    from polyhead.heads.training.rl.prompts import Sourced
    from polyhead.heads.training.rl.report import RoundReport
    from polyhead.heads.training.rl.rewards import Reward

__all__ = ["train_rl_command"]


class Algo(enum.Enum):
    """The policy's loss."""

    A2C = "a2c"
    PPO = "ppo"


class RewardFrom(enum.Enum):
    """Where rewards come from."""

    HEADS = "heads"
    JUDGE = "judge"
    RECIPE = "recipe"


class Kl(enum.Enum):
    """An estimate of the KL at one token, from the log-ratio k1 of policy and reference."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


@connected
def train_rl_command(
    session: Session,
    prompts: Annotated[Path, typer.Option(help='JSON lines {"prompt": ...} or {"messages": ...}; a .txt file has one prompt per line.')],
    reward: Annotated[RewardFrom, typer.Option(help="heads: preference and rules; judge: a Python function; recipe: the server's.")],
    algo: Annotated[Algo, typer.Option(help="The policy's loss.")] = Algo.PPO,
    name: Annotated[str, typer.Option(help="Train policy-NAME and value-NAME, so that runs can share a server.", show_default="none")] = "",
    judge: Annotated[str, typer.Option(help="With --reward judge: module:function of (prompt, reply).")] = "",
    recipe: Annotated[str, typer.Option(help="With --reward recipe: the recipe.")] = "sparrow",
    preference: Annotated[str, typer.Option(help='With --reward heads: the preference head; "" leaves it out.')] = "preference",
    rule: Annotated[list[str] | None, typer.Option(help="Id of a rule of the server. Repeatable.", show_default="none")] = None,
    rule_head: Annotated[str, typer.Option(help="With --reward heads: the rule head.")] = "rule",
    preference_weight: Annotated[float, typer.Option(help="Weight of the preference score, scaled by its first round's spread.")] = 1.0,
    rule_weight: Annotated[float, typer.Option(help="Weight of the mean probability that a rule is followed.")] = 1.0,
    dialogues: Annotated[Path | None, typer.Option(help='JSON lines {"messages": [...]}: conversations to use as further prompts.')] = None,
    adversarial: Annotated[int, typer.Option(min=0, help="Number of further prompts for each --rule, written by the reference head.")] = 0,
    self_play: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of prompts that continue replies of the round before.")] = 0.0,
    pretraining: Annotated[
        Path | None, typer.Option(help='Texts mixed into the updates: JSON lines {"text": ...}; a .txt file has one per line.')
    ] = None,
    pretraining_weight: Annotated[float, typer.Option(help="With --pretraining: weight of the mean loss per token.")] = 1.0,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds: rollout, update, activation.", show_default="10")] = None,
    prompts_per_round: Annotated[int | None, typer.Option(help="Prompts in each round.", show_default="12")] = None,
    samples: Annotated[int | None, typer.Option(help="Replies drawn for each prompt.", show_default="4")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of a reply.", show_default="24")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.", show_default="1")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the policy.", show_default="1e-4")] = None,
    value_learning_rate: Annotated[float | None, typer.Option(help="Learning rate of the value head.", show_default="1e-4")] = None,
    kl_weight: Annotated[float | None, typer.Option(help="Weight of the KL penalty at each token.", show_default="0.05")] = None,
    kl_estimator: Annotated[Kl, typer.Option(help="k1: log-ratio; k2: half its square; k3: unbiased and never negative.")] = Kl.K1,
    kl_limit: Annotated[float | None, typer.Option(help="KL in nats per token above which a round is undone.", show_default="0.35")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the replies of a round.", show_default="1")] = None,
    minibatches: Annotated[int | None, typer.Option(help="Optimiser steps in each pass.", show_default="3")] = None,
    average: Annotated[float | None, typer.Option(help="Also push the moving average of the policy, with this decay.")] = None,
    start_from: Annotated[str, typer.Option(help="Head whose weights the policy starts from.")] = "policy",
    value_from: Annotated[str, typer.Option(help="Value or preference head whose weights the value head starts from.")] = "value",
    reference: Annotated[str, typer.Option(help="Head that the KL penalty is measured against.")] = "reference",
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward passes in bfloat16: faster, less exact.")] = False,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder to save to; the same command resumes from it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws and of the order of prompts.")] = 0,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads; 1 on a busy machine.", show_default="all")] = None,
) -> None:
    """Train a policy on rewards of its own replies. Each round draws and scores in one call, updates policy and value head on boundary
    states, and activates both as one change; this process never holds the trunk."""
    require_torch("training", "cli,train")
    import torch

    from polyhead.heads.training.data import read_texts
    from polyhead.heads.training.processes import Processes
    from polyhead.heads.training.rl import config as settings
    from polyhead.heads.training.rl import rounds as loop
    from polyhead.heads.training.rl.pretraining import Pretraining
    from polyhead.heads.training.rl.prompts import PromptPool
    from polyhead.heads.training.rl.served import Arm
    from polyhead.heads.training.rule import served_rules

    if threads is not None:
        torch.set_num_threads(threads)
    given: dict[str, Any] = {
        "rounds": rounds,
        "prompts": prompts_per_round,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "learning_rate": learning_rate,
        "value_learning_rate": value_learning_rate,
        "kl_weight": kl_weight,
        "kl_limit": kl_limit,
        "epochs": epochs,
        "minibatches": minibatches,
        "average_decay": average,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(sentences(checkpoints))
        folder, processes = stack.enter_context(_run_folder(checkpoints)), Processes.launched()
        write = stack.enter_context(event_writer(tensorboard if processes.is_main else None))
        estimator = settings.KlEstimator(kl_estimator.value)
        config = dataclasses.replace(
            settings.RLConfig(algorithm=settings.Algorithm(algo.value), kl_estimator=estimator, autocast=bf16, seed=seed),
            **{field: value for field, value in given.items() if value is not None},
        )
        rules = tuple(served_rules(session.client, rule)) if rule else ()
        weights = (preference_weight, rule_weight)
        chosen = _reward(reward, judge, recipe, preference, rule_head if rules else "", rules, weights)
        mixed = Pretraining(read_texts(pretraining), pretraining_weight) if pretraining else None
        sources = (prompts, dialogues, adversarial, tuple(rule or ()), reference, folder, seed)
        pool = processes.on_main(lambda: _prompts(session, *sources))
        run = loop.Run(session.client, PromptPool(pool, seed), chosen, folder, name, start_from, value_from, reference, self_play, mixed)
        done: list[RoundReport] = []

        def show(report: RoundReport) -> None:
            done.append(report)
            write(report.numbers(), report.number)
            typer.echo(report.line(config.rounds), err=session.as_json)

        learner = loop.train(run, config, show, lambda text: typer.echo(text, err=True))
        if not processes.is_main:
            return  # the main process of the run shows and pushes
        arm = Arm(session.client, name)
        heads = {"policy": session.client.head(arm.policy).ref, "value": session.client.head(arm.value).ref}
        answer: dict[str, Any] = {**heads, "rounds": [report.plain() for report in done]}
        lines = [f"active: {heads['policy']} and {heads['value']}"]
        if config.average_decay:
            answer["average"] = loop.push_average(run, learner)
            lines.append(f"pushed {answer['average']}, the moving average of the policy")
    session.show(answer, "\n".join(lines))


def _reward(
    source: RewardFrom, judge: str, recipe: str, preference: str, rule: str, rules: tuple[str | Rule, ...], weights: Any
) -> Reward:
    from polyhead.heads.training.rl import rewards

    if source is RewardFrom.JUDGE:
        if not judge:
            raise ValueError("--reward judge needs a function\nhint: --judge module:function")
        return rewards.load_judge(judge)
    if source is RewardFrom.RECIPE:
        return rewards.RecipeReward(recipe, rules)
    return rewards.HeadsReward(preference, rule, rules, *weights)


def _prompts(
    session: Session,
    prompts: Path,
    dialogues: Path | None,
    adversarial: int,
    rules: tuple[str, ...],
    reference: str,
    folder: Path,
    seed: int,
) -> list[Sourced]:
    from polyhead.heads.training.rl import prompts as sources

    found = sources.read_questions(prompts)
    if dialogues is not None:
        found += sources.read_dialogues(dialogues)
    if adversarial:
        if not rules:
            raise ValueError("--adversarial needs at least one rule\nhint: give --rule")
        kept = folder / "adversarial.jsonl"
        written = sources.kept_prompts(kept)
        if written is None:
            known = rule_texts(session)
            written = sources.write_adversarial(session.client, [known.get(each, each) for each in rules], adversarial, reference, seed)
            sources.keep_prompts(kept, written)
        found += written
    return found


def rule_texts(session: Session) -> dict[str, str]:
    """The texts of the server's rules by id."""
    return {rule.id: rule.text for each in session.client.configurations("rule_set") for rule in each.rules}


@contextlib.contextmanager
def _run_folder(checkpoints: Path | None) -> Iterator[Path]:
    """The folder of what a run needs to undo a round: `checkpoints`, or a temporary one."""
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        yield checkpoints
    else:
        with tempfile.TemporaryDirectory(prefix="polyhead-rl-") as folder:
            yield Path(folder)
