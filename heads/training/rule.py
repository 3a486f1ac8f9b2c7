"""Training of a rule head: binary cross-entropy on the two answer tokens behind the rule's question (Sparrow's five labels made two).

The question's ids are the server's own (TokenizeRules), of the template that the head has, behind the dialogue's: so the head is trained
on what it will be asked, and on the answers that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from polyhead.client import Client, Rule
from polyhead.client.errors import NotFound
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.data import DataError, RuleJudgement
from polyhead.heads.training.fit import FitConfig, Step, become_average, fit
from polyhead.heads.training.labels import RuleLabel
from polyhead.heads.training.losses import rule_loss
from polyhead.heads.training.packing import Text, pack
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.texts import Texts

FEW_JUDGEMENTS = FitConfig(epochs=2, batch_size=8, learning_rate=1e-4)  # a few hundred texts


@dataclass(frozen=True)
class Asked:
    """Dialogues with a rule's question behind each, and what a person answered."""

    texts: list[Text]
    labels: list[RuleLabel]
    violated_id: int
    followed_id: int


def encode_judgements(
    client: Client, rows: Sequence[RuleJudgement], states: StateStore, rules: Sequence[str | Rule] | None = None, head: str = "rule"
) -> Asked:
    """The rows that are not unsure, with the questions that `head` is asked. Raises DataError for a rule that the server does not know.

    `rules` gives rules by their text; left out, the rows name rules of the server: of its own rule set, or of one that was added.
    """
    rows = [row for row in rows if row.label.target is not None]
    manifest = client.head(head).manifest
    asked = served_rules(client, rules or sorted({row.rule for row in rows}))
    questions = client.tokenize_rules(asked, template=manifest.template)
    ids_of = dict(questions.token_ids)
    texts = Texts(client)
    pairs = [texts.pair(row.prompt, row.completion, row.place, len(ids_of[row.rule])) for row in rows]
    ids = [[*prompt, *reply, *ids_of[row.rule]] for (prompt, reply), row in zip(pairs, rows, strict=True)]
    encoded = [Text(row, state, len(row)) for row, state in zip(ids, states.states(ids), strict=True)]
    return Asked(encoded, [row.label for row in rows], manifest.violated_token_id, manifest.followed_token_id)


def served_rules(client: Client, rules: Sequence[str | Rule]) -> Sequence[str | Rule]:
    """The rules as the server can be asked about them: ids that its default rule set does not have by their text in another set.

    Raises DataError for an id that no set has.
    """
    others: dict[str, Rule] = {}
    found: list[str | Rule] = []
    for rule in rules:
        if not isinstance(rule, str) or _is_default(client, rule):
            found.append(rule)
            continue
        others = others or {each.id: each for rule_set in client.configurations("rule_set") for each in rule_set.rules}
        if rule not in others:
            hint = "hint: `polyhead configurations` lists the rule sets, `polyhead configurations add FILE` adds one"
            raise DataError(f"no rule set of the server has a rule of this id: {rule!r}\n{hint}")
        found.append(others[rule])
    return found


def _is_default(client: Client, rule: str) -> bool:
    """Whether the default rule set has this id."""
    try:
        client.tokenize_rules([rule])
    except NotFound:
        return False
    return True


def train_rule(
    client: Client,
    rows: Sequence[RuleJudgement],
    states: StateStore,
    start_from: str = "rule",
    config: FitConfig = FEW_JUDGEMENTS,
    broken_weight: float = 1.0,
    embedding: nn.Parameter | None = None,
    rules: Sequence[str | Rule] | None = None,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> HeadModule:
    """Train a copy of `start_from` on judgements and return it; nothing is pushed."""
    with Processes.launched().main_first():
        asked = encode_judgements(client, rows, states, rules, start_from)
    head = pull_module(client, start_from, embedding)

    def loss(items: list[int]) -> torch.Tensor:
        violated, followed = answers(head, asked, items)
        return rule_loss(violated, followed, [asked.labels[item] for item in items], broken_weight)

    become_average(head, fit(trainable_parameters(head), [len(text.token_ids) for text in asked.texts], loss, config, checkpoints, on_step))
    return head


def answers(head: HeadModule, asked: Asked, items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(items,) logits of "broken" and of "followed", read at the question's last token."""
    packed = pack([asked.texts[item] for item in items])
    logits = head(packed.states_1TD, packed.positions_1T, packed.last_rows, attention_mask=packed.mask_11TT)
    return logits[:, asked.violated_id], logits[:, asked.followed_id]


@torch.no_grad()
def held_out_probabilities(head: HeadModule, asked: Asked) -> list[float]:
    """p_violate of each text."""
    found = []
    for item in range(len(asked.texts)):
        violated, followed = answers(head, asked, [item])
        found.append(float(torch.sigmoid(violated - followed)))
    return found
