"""What to score and how to sample, as generations and scorings have it: heads, rules, a recipe, its details. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.wire.options import Rule, SamplingOptions
from polyhead.client.wire.text_check import lone_surrogate
from polyhead.v1 import types_pb2

__all__ = ["rule_selection", "sampling", "scoring_spec", "with_details"]

_LISTS = ("stop", "stop_token_ids", "sample_seeds")


def scoring_spec(
    heads: Sequence[str], rules: Sequence[str | Rule | Mapping[str, str]] | None, rule_set: str, recipe: str, field: str, ood: str
) -> types_pb2.ScoringSpec | None:
    if isinstance(heads, str):
        raise TypeError(f'{field} must be a list of heads: str\nhint: write ["{heads}"]')
    if not heads and not recipe:
        if rules or rule_set:
            raise InvalidArgument(f"rules are given, but {field} names no head to ask", field=field)
        if not ood:
            return None
    return types_pb2.ScoringSpec(heads=list(heads), rules=rule_selection(rules or (), rule_set), recipe=recipe, ood=ood)


def with_details(
    spec: types_pb2.ScoringSpec | None, constants: Mapping[str, float] | None, entropy: bool, top_logprobs: int
) -> types_pb2.ScoringSpec | None:
    """Adds what refines a scoring. Without one there is nothing to refine."""
    given = {"recipe_constants": constants, "entropy": entropy, "top_logprobs": top_logprobs}
    if spec is None:
        if useless := next((name for name, value in given.items() if value), None):
            raise InvalidArgument(f"{useless} is given, but nothing is scored: name heads or a recipe", field=useless)
        return None
    for name, value in given.items():
        try:
            spec.MergeFrom(types_pb2.ScoringSpec(**{name: cast(Any, value)}))
        except (TypeError, AttributeError):
            raise TypeError(f"{name} has a wrong type: {type(value).__name__}") from None
        except UnicodeEncodeError:
            raise lone_surrogate(**{name: value}) from None
        except ValueError:
            raise InvalidArgument(f"{name} is out of range: {str(value)[:80]}", field=name) from None
    return spec


def rule_selection(rules: Sequence[str | Rule | Mapping[str, str]], rule_set: str) -> types_pb2.RuleSelection | None:
    if isinstance(rules, (str, Mapping)):
        raise TypeError("rules must be a list of rule ids or rules\nhint: write [rule] for a single one")
    ids = [rule for rule in rules if isinstance(rule, str)]
    texts = [rule if isinstance(rule, Rule) else Rule(**rule) for rule in rules if not isinstance(rule, str)]
    if not ids and not texts and not rule_set:
        return None
    return types_pb2.RuleSelection(
        rule_set=rule_set,
        rule_ids=ids,
        rules=[types_pb2.Rule(id=rule.id, text=rule.text) for rule in texts],
    )


def sampling(options: SamplingOptions, prefix: str = "") -> types_pb2.Sampling:
    message = types_pb2.Sampling()
    for key, value in options.items():
        if value is None:
            continue
        try:
            if key in _LISTS:
                getattr(message, key).extend(_listed(value))
            else:
                setattr(message, key, value)
        except TypeError:
            raise TypeError(f"{prefix}{key} has a wrong type: {type(value).__name__}") from None
        except UnicodeEncodeError:
            raise lone_surrogate(**{prefix + key: value}) from None
        except ValueError:  # protobuf names neither the field nor the range
            raise InvalidArgument(f"{prefix}{key} is out of range: {str(value)[:80]}", field=prefix + key) from None
    return message


def _listed(value: Any) -> Any:
    """A single string stands for a list of one; bytes are no list of ids."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(type(value).__name__)
    return [value] if isinstance(value, str) else value
