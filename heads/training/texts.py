"""Prompts and completions as token ids, by the server's own tokenizer, so that a trainer reads what the server will score."""

from __future__ import annotations

from polyhead.client import Client
from polyhead.client.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.training.data import Completion, DataError, Prompt


class Texts:
    """Asks the server for the ids of each prompt and reply once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._trunk = client.trunk()
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
            self._replies[completion] = [*self._client.tokenize(completion, special_tokens=False), self._trunk.eos_token_ids[0]]
        return self._replies[completion]

    def pair(self, prompt: Prompt, completion: Completion, place: str, num_behind: int = 0) -> tuple[list[int], list[int]]:
        """Ids of a row's prompt and of its reply, with room for `num_behind` more. Raises DataError naming the row's place."""
        try:
            ids = self.prompt(prompt), self.reply(completion)
        except (InvalidArgument, FailedPrecondition) as error:
            raise DataError(f"{place or 'a row'}: {error}") from error
        if (num_tokens := len(ids[0]) + len(ids[1]) + num_behind) > self._trunk.context_length:
            raise DataError(f"{place or 'a row'}: {num_tokens} tokens; the context holds {self._trunk.context_length}")
        return ids
