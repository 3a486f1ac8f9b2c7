"""Which rule a person attacks: the rules of a set as the server words them, the least covered first."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from polyhead.client import Rule
from polyhead.client.annotate.problems import ModelDown
from polyhead.client.annotate.projects.config import Assignment, Kind
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.storage.database import Database


def store_rules(db: Database, project: OpenProject, reference: str, rules: Sequence[Rule]) -> None:
    """What the server says that the rules are; kept as an event, so that an item's rule can be traced to its set's version."""
    body = {"rule_set": reference, "rules": [{"id": rule.id, "text": rule.text} for rule in rules]}
    with db.transaction():
        if known_rules(db, project) != (reference, body["rules"]):
            db.event("rules.read", "system", body, {"project_id": project.row.id})


def known_rules(db: Database, project: OpenProject) -> tuple[str, list[dict[str, str]]]:
    """(rule set with its version, rules); the newest that were read."""
    text = db.value("SELECT body_json FROM events WHERE kind = 'rules.read' AND project_id = ? ORDER BY seq DESC", project.row.id)
    body = json.loads(text or '{"rule_set": "", "rules": []}')
    return body["rule_set"], body["rules"]


def assigned_rule(db: Database, project: OpenProject) -> dict[str, Any]:
    """For `probe`, {"rule", "rule_set"}: a rule with the fewest verdicts, at random among equals, or any. Else nothing."""
    if project.config.kind is not Kind.PROBE:
        return {}
    reference, rules = known_rules(db, project)
    if not rules:
        raise ModelDown("the rules were not read from the server yet")
    counts = _num_verdicts(db, project) if project.config.rules.assign is Assignment.LEAST_COVERED else {}
    least = min(counts.get(rule["id"], 0) for rule in rules)
    rule = random.SystemRandom().choice([rule for rule in rules if counts.get(rule["id"], 0) == least])
    return {"rule": rule, "rule_set": reference}


def _num_verdicts(db: Database, project: OpenProject) -> dict[str, int]:
    rows = db.all(
        "SELECT json_extract(i.content_json, '$.rule.id') AS rule_id, count(*) AS num FROM answers n"
        " JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id JOIN rounds r ON r.id = i.round_id"
        " WHERE r.project_id = ? AND n.state = 'current' AND n.kind = 'probe' GROUP BY 1",
        project.row.id,
    )
    return {row.rule_id: row.num for row in rows}
