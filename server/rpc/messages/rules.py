"""A selection of rules, from protobuf to the rules meant. Errors name the field, which depends on the call."""

from __future__ import annotations

from polyhead.heads.format.errors import InvalidArgument, NotFound
from polyhead.heads.format.manifest import check_name
from polyhead.server.rewards.rules import DEFAULT_SET, MAX_RULE_CHARACTERS, Rule, RuleBook
from polyhead.v1 import types_pb2

MAX_RULES = 256


def selected_rules(selection: types_pb2.RuleSelection, book: RuleBook, field: str) -> tuple[str, list[Rule]]:
    """(reference of the rule set, "" without one; rules in the order asked for)."""
    reference, rules = "", []
    if selection.rule_set or selection.rule_ids:
        rule_set = book.find_set(selection.rule_set or DEFAULT_SET, f"{field}.rule_set")
        reference = rule_set.reference
        for index, rule_id in enumerate(selection.rule_ids or rule_set.rules):
            if rule_id not in rule_set.rules:
                raise NotFound(f"no rule {rule_id[:80]!r} in {reference}", field=f"{field}.rule_ids[{index}]")
            rules.append(rule_set.rules[rule_id])
    rules += [_inline_rule(rule, f"{field}.rules[{index}]") for index, rule in enumerate(selection.rules)]
    if len(rules) > MAX_RULES:
        raise InvalidArgument(f"too many rules: {len(rules)}, at most {MAX_RULES}", field=field)
    if len({rule.rule_id for rule in rules}) != len(rules):
        raise InvalidArgument("a rule id stands twice", field=field)
    return reference, rules


def _inline_rule(rule: types_pb2.Rule, field: str) -> Rule:
    check_name(rule.id, f"{field}.id")
    if not rule.text.strip() or len(rule.text) > MAX_RULE_CHARACTERS:
        raise InvalidArgument(f"a rule must have 1 to {MAX_RULE_CHARACTERS} characters", field=f"{field}.text")
    return Rule(rule.id, rule.text)
