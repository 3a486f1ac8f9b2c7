"""Prompts and completions as token ids, by the server's own tokenizer, so that a trainer reads what the server will score."""

from __future__ import annotations

from polyhead.client import Client
from polyhead.heads.training.data import Completion, Prompt


class Texts:
    """Asks the server for the ids of each prompt and reply once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._end = client.trunk().eos_token_ids[0]
        self._prompts: dict[str, list[int]] = {}
        self._replies: dict[str, list[int]] = {}

    def prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a text, or of a conversation in the model's chat template with the reply opened."""
        key = prompt if isinstance(prompt, str) else repr(prompt)
        if key not in self._prompts:
            self._prompts[key] = self._client.tokenize(prompt)
        return self._prompts[key]

    def reply(self, completion: Completion) -> list[int]:
        """Ids of a completion; a text is closed by the model's end token, which drawn ids have unless the reply was cut short."""
        if not isinstance(completion, str):
            return list(completion)
        if completion not in self._replies:
            self._replies[completion] = [*self._client.tokenize(completion, special_tokens=False), self._end]
        return self._replies[completion]
