"""A checkpoint whose tokenizer has one token more than the model: every text that holds it is refused by name, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polyhead.client import Client
from polyhead.client.errors import InvalidArgument
from tests.e2e.support import assert_blocks_returned, serving
from tests.heads.models import save_tiny
from tests.server.text.tiny_tokenizers.families import save, sentencepiece_legacy

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
TURNS = [{"role": "user", "content": "a[PAD]b"}]
PADDED = "a[PAD]b"
FINE: list[Any] = [[1, 70, 71]]
DRAWS: dict[str, Any] = {"seed": 3, "ignore_eos": True, "max_new_tokens": 200}
FIT = [[1, 70 + index % 8, 60 + index // 8] for index in range(40)]

REFUSED: dict[str, tuple[Callable[[Client], object], str]] = {
    "text": (lambda client: client.generate([PADDED], max_new_tokens=2), "prompts[0].text"),
    "second text": (lambda client: client.generate(["a", PADDED], max_new_tokens=2), "prompts[1].text"),
    "chat": (lambda client: client.generate([TURNS], max_new_tokens=2), "prompts[0].chat"),
    "prefix": (lambda client: client.generate(["a"], assistant_prefix="b[PAD]", max_new_tokens=2), "prompts[0].assistant_prefix"),
    "rules": (
        lambda client: client.generate(FINE, score=["rule"], rules=[{"id": "mine", "text": "No [PAD]."}], max_new_tokens=2),
        "score.rules[mine].text",
    ),
    "scored prompt": (lambda client: client.score([(PADDED, "b")], heads=["reference"]), "items[0].prompt.text"),
    "scored text": (lambda client: client.score([("a", "b[PAD]")], heads=["reference"]), "items[0].text"),
    "scored rules": (
        lambda client: client.score([("a", "b")], heads=["rule"], rules=[{"id": "mine", "text": "No [PAD]."}]),
        "score.rules[mine].text",
    ),
    "fit": (lambda client: client.fit_ood("normal", [*FIT, PADDED]), "prompts[40].text"),
    "ood prompt": (lambda client: client.generate([PADDED], ood="known", max_new_tokens=2), "prompts[0].text"),
    "ood item": (lambda client: client.score([(PADDED, "b")], heads=["reference"], ood="known"), "items[0].prompt.text"),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("padded")
    tokenizer = sentencepiece_legacy()
    save_tiny("llama", folder, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=1024)
    save(folder, tokenizer, added=("[PAD]",), chat=CHAT)
    with serving(folder, folder / "store") as server, Client(server.address, timeout=60) as opened:
        opened.fit_ood("known", FIT)
        yield opened
        assert_blocks_returned(opened)


@pytest.fixture(scope="module")
def alone(client: Client) -> list[int]:
    """What is drawn while nobody else asks for anything."""
    return client.generate(FINE, **DRAWS)[0].token_ids


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_beyond_the_vocabulary_is_refused_and_harms_nobody(client: Client, alone: list[int], name: str) -> None:
    """It was INTERNAL for everybody in the same step, and in Score a number from beyond the logits."""
    send, field = REFUSED[name]
    with client.stream(FINE[0], **DRAWS) as pieces:
        drawn = list(next(pieces).token_ids)
        before = client.status().counters["requests"]
        with pytest.raises(InvalidArgument, match=r"\[PAD\]") as caught:
            send(client)
        assert caught.value.field == field
        assert client.status().counters["requests"] == before, "refused before any work"
        drawn += [token for piece in pieces for token in piece.token_ids]
    assert drawn == alone
