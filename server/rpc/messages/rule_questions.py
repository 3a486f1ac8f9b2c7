"""The questions that a request asks about each text, from the rules that it names. Knows no prompt."""

from __future__ import annotations

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.questions import RuleQuestion, RuleQuestions
from polyhead.server.engine.work.request import Priority
from polyhead.server.rpc.messages.rules import selected_rules
from polyhead.server.rpc.request_context import RequestContext
from polyhead.v1 import types_pb2


def rule_questions(
    spec: types_pb2.ScoringSpec,
    scoring: list[ServedHead],
    priority: Priority,
    num_samples: int,
    context: RequestContext,
    *,
    are_idle: bool,
) -> RuleQuestions | None:
    """`are_idle`: rules are given for a part of the recipe whose weight is 0; they are checked, and not asked."""
    rule_heads = [head for head in scoring if head.manifest.kind is HeadKind.RULE]
    selection = spec.rules
    is_given = bool(selection.rule_set or selection.rule_ids or selection.rules)
    if not rule_heads and are_idle:
        selected_rules(selection, context.rules, "score.rules")
        return None
    if bool(rule_heads) != is_given:
        raise _rules_alone(rule_heads)
    if not rule_heads:
        return None
    for head in rule_heads:
        context.rules.check_head(head.reference, head.manifest.template, "score.heads")
        if not head.manifest.has_answers:
            raise FailedPrecondition(
                f"{head.reference} has no answer tokens: its template was not served when it was made\n"
                "hint: copy it to a new version, which takes them from the template",
                field="score.heads",
            )
    reference, rules = selected_rules(selection, context.rules, "score.rules")
    fixed = [context.rules.templates[head.manifest.template] for head in rule_heads]
    num_least = sum(len(template.before) + 1 + len(template.after) for template in fixed)
    context.check_room(priority, num_samples * len(rules) * num_least, None)
    worded = context.rules.suffixes(rules, "score.rules")
    return RuleQuestions(
        reference, {template: tuple(RuleQuestion(*question) for question in questions) for template, questions in worded.items()}
    )


def _rules_alone(rule_heads: list[ServedHead]) -> InvalidArgument:
    """The error for rules without a head of kind rule, or such a head without rules, with the ways to give the other half."""
    if not rule_heads:
        hint = "name one, such as rule; rules are read by heads of kind rule alone"
        return InvalidArgument(f"rules are given, but no head of kind rule is to score\nhint: {hint}", field="score.heads")
    ways = 'some ids, rules=["no-insults"]; a whole set, rule_set="example-rules@1"; or texts of your own'
    message = f"a head of kind rule needs rules to ask about: {rule_heads[0].reference}"
    return InvalidArgument(f"{message}\nhint: give {ways}; `polyhead configurations` lists sets and ids", field="score.rules")
