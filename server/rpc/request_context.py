"""What a request is checked against: tokenizer, configurations, limits, and the heads that it names. Runs no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.request import Priority
from polyhead.server.engine.work.sampling import Draws
from polyhead.server.process.services import Services
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rewards.rules import RuleBook
from polyhead.server.rpc.named import NamedGeneration
from polyhead.server.rpc.tag import PromptScorer
from polyhead.server.text.text_bounds import check_fits
from polyhead.server.text.tokenizer import Tokenizer
from polyhead.server.text.transcripts import TranscriptBook

Resolve = Callable[[str, str], ServedHead]  # (reference, field): active or given version; raises NotFound
CheckRoom = Callable[[Priority, int, Draws | None], None]  # (who waits, tokens that it comes to at least, what it draws): ResourceExhausted


def _has_room(priority: Priority, num_tokens: int, draws: Draws | None) -> None:
    """Without an engine there is no queue that could be full."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Made for each request by `CallRunner.context`."""

    tokenizer: Tokenizer
    rules: RuleBook
    formats: TranscriptBook
    recipes: RecipeBook
    vocab_size: int
    max_context: int  # tokens of prompt and reply together
    eos_ids: frozenset[int]
    resolve: Resolve  # of one snapshot of the active set; what it finds stays in memory until the engine has the request
    find_ood: Callable[[str, str], PromptScorer]  # (reference, field): newest or given version; raises NotFound, FailedPrecondition
    max_held_states: int = 1 << 18  # tokens whose states may wait together to be read: of a sample, or of a group that leaves as one
    check_room: CheckRoom = _has_room  # asked with counts before texts are tokenised, and with tokens before samples are built
    most_bytes_per_token: int | None = None  # of text; None: no bound is known
    default_priority: Priority = Priority.BATCH  # of a request that names none
    named: NamedGeneration | None = None  # which generation the request has to be answered with; None: the active one

    @classmethod
    def of(
        cls,
        services: Services,
        resolve: Resolve,
        check_room: CheckRoom,
        default_priority: Priority,
        named: NamedGeneration | None = None,
    ) -> RequestContext:
        """Of a loaded server."""
        return cls(
            tokenizer=services.tokenizer,
            rules=services.rules,
            formats=services.formats,
            recipes=services.recipes,
            vocab_size=services.spec.vocab_size,
            max_context=services.max_context,
            eos_ids=services.eos_ids,
            resolve=resolve,
            find_ood=services.ood.find,
            max_held_states=services.config.unread_bytes // services.engine.state_bytes,
            check_room=check_room,
            most_bytes_per_token=services.tokenizer.most_bytes_per_token,
            default_priority=default_priority,
            named=named,
        )

    def check_text(self, num_bytes: int, field: str) -> None:
        """InvalidArgument if so much text cannot fit the context: said before it is tokenised."""
        check_fits(num_bytes, self.most_bytes_per_token, self.max_context, field)
