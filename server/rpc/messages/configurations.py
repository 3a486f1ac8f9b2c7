"""Configuration files and the ids of rule questions, from the server's books to protobuf."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.manifest import parse_reference
from polyhead.server.rewards.configurations import Configuration, Listed
from polyhead.server.rewards.library import Library
from polyhead.server.rewards.rules import RuleBook
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.messages.reply_sizes import MAX_REPLY_BYTES
from polyhead.server.rpc.messages.rules import selected_rules
from polyhead.v1 import scoring_pb2, types_pb2


def listing(message: scoring_pb2.ListConfigurationsRequest, books: Iterable[Listed]) -> scoring_pb2.ListConfigurationsResponse:
    """All files of the kind asked for: by kind, then by name, then by version."""
    wanted = enums.CONFIGURATION_KINDS.member(message.kind, "kind")
    found = itertools.chain.from_iterable(book.configurations() for book in books)
    chosen = [each for each in found if wanted in (None, each.kind)]
    response = scoring_pb2.ListConfigurationsResponse(configurations=map(configuration, sorted(chosen, key=_place)))
    if response.ByteSize() > MAX_REPLY_BYTES:
        raise FailedPrecondition("the files do not fit one message: ask for one kind at a time", field="kind")
    return response


def add(message: scoring_pb2.AddConfigurationRequest, library: Library, digest: str) -> scoring_pb2.AddConfigurationResponse:
    """Blocking: it tokenises, and writes to the disk."""
    return scoring_pb2.AddConfigurationResponse(configuration=configuration(library.add(message.content, message.request_id, digest)))


def retire(message: scoring_pb2.RetireConfigurationRequest, library: Library, digest: str) -> scoring_pb2.RetireConfigurationResponse:
    """Blocking: it writes to the disk."""
    kind = enums.CONFIGURATION_KINDS.member(message.kind, "kind")
    done = library.retire(kind, message.reference, message.request_id, digest)
    return scoring_pb2.RetireConfigurationResponse(
        kind=enums.CONFIGURATION_KINDS.number(done.kind), reference=done.reference, sha256=done.sha256
    )


def rule_questions(message: scoring_pb2.TokenizeRulesRequest, book: RuleBook) -> scoring_pb2.TokenizeRulesResponse:
    """Blocking: it tokenises, on the path that scoring takes."""
    template = book.find_template(message.template or book.default_template, "template")
    rule_set, rules = selected_rules(message.rules, book, "rules")
    if not rules:
        raise InvalidArgument("no rules: name a rule set, ids of rules, or give rules", field="rules")
    return scoring_pb2.TokenizeRulesResponse(
        questions=[scoring_pb2.RuleQuestion(rule_id=rule_id, token_ids=ids) for rule_id, ids in book.questions(template, rules)],
        violated_token_id=template.violated_token_id,
        followed_token_id=template.followed_token_id,
        rule_set=rule_set,
        template=template.reference,
    )


def _place(each: Configuration) -> tuple[int, str, int]:
    name, version = parse_reference(each.reference, "reference")
    return int(enums.CONFIGURATION_KINDS.number(each.kind)), name, version


def configuration(each: Configuration) -> scoring_pb2.Configuration:
    return scoring_pb2.Configuration(
        kind=enums.CONFIGURATION_KINDS.number(each.kind),
        reference=each.reference,
        sha256=each.sha256,
        content=each.content,
        rules=[types_pb2.Rule(id=rule_id, text=text) for rule_id, text in each.rules],
        set_aside=each.set_aside,
        added=each.is_added,
    )
