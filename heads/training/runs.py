"""One training run from a data file to a pushed head: read, encode, fit, measure on held-out rows, push. What `polyhead train` calls.

Of several processes the main one alone measures and pushes.

Nothing is pushed before the run is through: bad data, an interrupt or a full disk leave the server as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from polyhead.client import Client, HeadKind, PushReport
from polyhead.client.wire.options import PushOptions
from polyhead.heads.model.embedded import cache_folder
from polyhead.heads.model.family import HeadModule
from polyhead.heads.training import policy, preference, rule, value
from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.data import DataError, read_comparisons, read_demonstrations, read_judgements, read_rewarded
from polyhead.heads.training.fit import FitConfig, Step, TrainingFailed, identity_of
from polyhead.heads.training.metrics import RuleMetrics, pair_accuracy, rule_metrics
from polyhead.heads.training.preference import OFF_TOPIC, PreferenceLoss
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.remote import head_to_start_from, pull_embedding, weights_of
from polyhead.heads.training.state_store import StateStore

__all__ = [
    "PreferenceLoss",
    "Processes",
    "RunConfig",
    "Trained",
    "TrainingFailed",
    "preferences",
    "push",
    "rules",
    "settings",
    "sft",
    "values",
]

T = TypeVar("T")
OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class RunConfig:
    """What a run is told besides the settings of `fit`. Checked when made; raises ValueError naming the field."""

    data: Path
    held_out: Path | None = None  # None: a share of the data's own rows
    held_out_share: float = 0.1
    start_from: str = ""  # "preference@3"; "": the active head of the kind's name
    states: Path = field(default_factory=lambda: cache_folder() / "states")  # boundary states, kept for later runs
    checkpoints: Path | None = None  # a folder to resume from
    broken_weight: float = 1.0  # rule heads: see losses.rule_loss
    loss: PreferenceLoss = PreferenceLoss.RANKING  # preference heads
    num_off_topic: int = OFF_TOPIC  # of PreferenceLoss.CHOICE
    references: Path | None = None  # replies whose mean score is to be 0, for preference heads; None: the best held-out ones

    def __post_init__(self) -> None:
        if not 0 < self.broken_weight < math.inf:
            raise ValueError(f"broken_weight must be a finite number above 0: {self.broken_weight}")


@dataclass(frozen=True)
class Trained:
    """A finished head, and how good it is on rows that it was not trained on."""

    head: HeadModule
    metrics: dict[str, float] = field(default_factory=dict)  # what is pushed with the head
    lines: list[str] = field(default_factory=list)  # the same for people
    served: PushOptions = field(default_factory=lambda: PushOptions())  # how the head was trained to be read


def sft(client: Client, run: RunConfig, config: FitConfig, on_step: OnStep) -> Trained:
    """A policy head from demonstrations."""
    rows, held_out = _rows(run, read_demonstrations, config.seed)
    states, source = StateStore(client, run.states), _source(client, run, HeadKind.POLICY)
    checkpoints = _checkpoints(run, config, client, source)
    unseen = _on_main(lambda: policy.encode_replies(client, held_out, states))
    head = policy.train_policy(client, rows, states, source, config, None, checkpoints, on_step)
    if unseen is None:
        return Trained(head)
    loss = policy.held_out_loss(head, unseen)
    return Trained(head, {"held_out_loss": loss}, [f"held out, {len(held_out)} replies: {loss:.3f} nats a token"])


def preferences(client: Client, run: RunConfig, config: FitConfig, on_step: OnStep) -> Trained:
    """A preference head from ranked replies."""
    rows, held_out = _rows(run, read_comparisons, config.seed)
    references = read_demonstrations(run.references) if run.references else preference.best_replies(held_out)
    states, source = StateStore(client, run.states), _source(client, run, HeadKind.PREFERENCE)
    checkpoints = _checkpoints(run, config, client, source)
    unseen = _on_main(lambda: (preference.encode_ranked(client, held_out, states), policy.encode_replies(client, references, states)))
    head = preference.train_preference(client, rows, states, source, config, checkpoints, on_step, run.loss, run.num_off_topic)
    if unseen is None:
        return Trained(head)
    margins = preference.held_out_margins(head, unseen[0])
    accuracy = pair_accuracy([margin for each in margins for margin in each])
    lines = [f"held out, pairs ranked right: {accuracy}"]
    for group, indices in _groups([row.group for row in held_out]).items():
        lines.append(f"  {group}: {pair_accuracy([margin for index in indices for margin in margins[index]])}")
    scores = preference.reference_scores(head, unseen[1])
    bias = sum(scores) / len(scores)
    lines.append(f"bias {bias:+.4f}: {len(scores)} reference replies have a score of 0 on average")
    metrics = {"held_out_accuracy": accuracy.share, "held_out_pairs": float(accuracy.count)}
    return Trained(head, metrics, lines, {"bias": bias, "scale": 1.0, "read": "last", "pad_token_id": -1})


def rules(client: Client, run: RunConfig, config: FitConfig, on_step: OnStep) -> Trained:
    """A rule head from judgements."""
    rows, held_out = _rows(run, read_judgements, config.seed)
    held_out = [row for row in held_out if row.label.target is not None]
    if not held_out:
        raise DataError("every held-out row is unsure: none can be measured")
    states, source = StateStore(client, run.states), _source(client, run, HeadKind.RULE)
    embedding = pull_embedding(client) if client.trunk().tied else None
    checkpoints = _checkpoints(run, config, client, source)
    asked = _on_main(lambda: rule.encode_judgements(client, held_out, states, head=source))
    head = rule.train_rule(client, rows, states, source, config, run.broken_weight, embedding, None, checkpoints, on_step)
    if asked is None:
        return Trained(head)
    found = rule.held_out_probabilities(head, asked)
    targets = [label.target or 0.0 for label in asked.labels]

    def measured(indices: Sequence[int]) -> RuleMetrics:
        return rule_metrics([found[index] for index in indices], [targets[index] for index in indices])

    overall = measured(range(len(found)))
    lines = [_line("held out, all rules", overall)]
    lines += [_line(f"  {name}", measured(each)) for name, each in _groups([row.rule for row in held_out]).items()]
    lines += [_line(f"  group {name}", measured(each)) for name, each in _groups([row.group for row in held_out]).items()]
    metrics = {"held_out_accuracy": overall.accuracy.share, "held_out_auc": overall.auc, "held_out_ece": overall.ece}
    manifest = client.head(source).manifest
    served: PushOptions = {"template": manifest.template}
    served |= {"violated_token_id": manifest.violated_token_id, "followed_token_id": manifest.followed_token_id}
    return Trained(head, {name: value for name, value in metrics.items() if math.isfinite(value)}, lines, served)


def values(client: Client, run: RunConfig, config: FitConfig, on_step: OnStep) -> Trained:
    """A value head from replies with rewards."""
    rows, held_out = _rows(run, read_rewarded, config.seed)
    states, source = StateStore(client, run.states), _source(client, run, HeadKind.VALUE)
    checkpoints = _checkpoints(run, config, client, source)
    unseen = _on_main(lambda: value.encode_rewarded(client, held_out, states))
    head = value.train_value(client, rows, states, source, config, checkpoints, on_step)
    if unseen is None:
        return Trained(head)
    explained = value.held_out_explained(head, unseen)
    metrics = {"held_out_explained_variance": explained} if math.isfinite(explained) else {}
    shown = f"{explained:+.3f}" if math.isfinite(explained) else "none, since their rewards are all equal"
    lines = [f"held out, {len(held_out)} replies: explained variance {shown}"]
    return Trained(head, metrics, lines, {"bias": 0.0, "scale": 1.0})


def push(client: Client, name: str, kind: Any, trained: Trained) -> PushReport:
    """The trained head as a new version of `name`, with its metrics. It is not active.

    It takes over nothing of the version before that it was not trained with: bias, scale and place of a scalar head, a rule's question.
    """
    options: PushOptions = {"kind": kind, "metrics": trained.metrics, **trained.served}
    return client.push(name, weights_of(trained.head), **options)


def _line(what: str, metrics: RuleMetrics) -> str:
    auc = f"{metrics.auc:.3f}" if math.isfinite(metrics.auc) else "none"  # it takes broken and followed rows
    return f"{what}: accuracy {metrics.accuracy}, AUC {auc}, ECE {metrics.ece:.3f}, broken {metrics.broken_share:.0%}"


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices by name; rows without one are in none."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if name:
            found[name].append(index)
    return dict(sorted(found.items()))


def _rows(run: RunConfig, read: Callable[[Path], list[T]], seed: int) -> tuple[list[T], list[T]]:
    """(rows to train on, held-out rows). A share of the data's rows is drawn by the seed alone."""
    rows = read(run.data)
    if run.held_out is not None:
        return rows, read(run.held_out)
    count = max(1, round(run.held_out_share * len(rows)))
    if count >= len(rows):
        raise DataError(f"{run.data}: too few rows to hold any out: {len(rows)}")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[index] for index in sorted(order[count:])], [rows[index] for index in sorted(order[:count])]


def _on_main(encode: Callable[[], T]) -> T | None:
    """What the main process measures on. Encoded before training, so that a bad row does not cost the head; None in other processes."""
    encoded: list[T] = []
    Processes.launched().on_main(lambda: encoded.append(encode()))
    return encoded[0] if encoded else None


def _source(client: Client, run: RunConfig, kind: HeadKind) -> str:
    """The head to start from. Raises ValueError for one that cannot start such a head."""
    source = run.start_from or kind.value
    head_to_start_from(client, source, kind)
    return source


def _checkpoints(run: RunConfig, config: FitConfig, client: Client, source: str) -> CheckpointFolder | None:
    if run.checkpoints is None:
        return None
    head = client.head(source)
    facts = {
        "data": hashlib.sha256(run.data.read_bytes()).hexdigest(),
        "held_out": hashlib.sha256(run.held_out.read_bytes()).hexdigest() if run.held_out else run.held_out_share,
        "start_from": head.digest,
        "trunk_id": client.trunk().trunk_id,
        "precision": client.trunk().precision,
        "broken_weight": run.broken_weight,
    }
    if head.manifest.template:
        facts["template"] = head.manifest.template
    if run.loss is PreferenceLoss.CHOICE:
        facts |= {"loss": run.loss.value, "off_topic": run.num_off_topic}
    return CheckpointFolder(run.checkpoints, identity_of(config, **facts))


DEFAULTS = {"sft": policy.FEW_REPLIES, "preference": preference.FEW_PAIRS, "rule": rule.FEW_JUDGEMENTS, "value": value.FEW_REWARDS}


def settings(kind: str, **changes: Any) -> FitConfig:
    """The defaults of a kind of run, with the changes that are not None. Raises ValueError naming the field."""
    return dataclasses.replace(DEFAULTS[kind], **{name: value for name, value in changes.items() if value is not None})
