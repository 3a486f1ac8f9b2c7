"""The tokenizer's side of a request: text and conversations to ids, ids to text as they come, stop strings. Knows no engine."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument, PolyheadError
from polyhead.server.text import chat_template
from polyhead.server.text import control_tokens as control
from polyhead.server.text.chat_template import ChatTemplate
from polyhead.server.text.continuation import Continuation, Decode
from polyhead.server.text.text_bounds import most_bytes_per_token
from polyhead.server.text.tokenizer_files import load_tokenizer

ROLES = ("system", "user", "assistant")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt")
_STAND_IN = "polyhead-stand-in-reply"
_LEAD = 3  # tokens among which a template's end token stands: perhaps a space before it
_HALF_CHARACTER = "\ufffd"  # what a tokenizer writes for bytes that are not a character yet
_LONG = 4096  # ids that take milliseconds
_LONGEST_WINDOW = 16  # tokens that are decoded again and again
_SHOWN = 60  # characters
_PROBES = ("a", "1", ".", "\n", "的")

logger = logging.getLogger(__name__)


class Tokenizer:
    """A checkpoint's tokenizer and chat template, with the meanings that the contract gives them."""

    def __init__(
        self, tokenizer: Any, sha256: str, vocab_size: int | None = None, most_bytes_per_token: int | None = None
    ) -> None:
        """`vocab_size` of the model: a tokenizer may know tokens beyond it. None: no bound."""
        self._tokenizer = tokenizer
        self.sha256 = sha256
        self.most_bytes_per_token = most_bytes_per_token  # of text; None: no bound is known
        self._vocab_size = vocab_size
        _drop_length_limits(tokenizer)

    @classmethod
    def load(cls, folder: Path, vocab_size: int | None = None) -> Tokenizer:
        """Read a local folder. FailedPrecondition or DataLoss names what is missing or damaged."""
        tokenizer = load_tokenizer(folder)
        digest = hashlib.sha256()
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        most = most_bytes_per_token(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None
        return cls(tokenizer, digest.hexdigest(), vocab_size, most)

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of a text; `special_tokens` adds what the tokenizer puts before one (a BOS, say), and never an end: a reply is to come."""
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=special_tokens))
            _, end = self._frame if special_tokens else ([], [])
            return ids[: len(ids) - len(end)] if end and ids[-len(end) :] == end else ids
        except Exception as error:  # of the Rust library, which has no class for it: no token for unknown text, say
            raise InvalidArgument(f"the model's tokenizer cannot write this text: {str(error)[:200]}") from None

    def encode_after(self, before: Sequence[int], text: str, field: str, is_content: bool = False) -> list[int]:
        """Ids of a text that continues `before`; control tokens in it are text if it is a message's content.

        InvalidArgument names the field if the tokenizer cannot do that.
        """
        text, breaker = self._guarded_text(text, is_content)
        if not self._holds_text(before):
            return self.check_ids(self._written(text, breaker, field), field)
        try:
            ids = self._written_behind(text, breaker, field)
        except InvalidArgument as error:
            raise InvalidArgument(f"{error.message}\nhint: send token ids instead of text", field=field) from None
        return self.check_ids(ids, field)

    def encode_behind_text(self, text: str, field: str, is_content: bool = False) -> list[int]:
        """The same behind any text whatever."""
        return self.check_ids(self._written_behind(*self._guarded_text(text, is_content), field), field)

    def decode_after(self, before: Sequence[int]) -> Decode:
        """What turns ids that continue `before` into the text that they add."""
        return self.continuation.decode if self._holds_text(before) else self.decode

    def check_ids(self, ids: list[int], field: str) -> list[int]:
        """Ids that the tokenizer made, or InvalidArgument naming the field: a token that was added to it may be none of the model's."""
        if self._vocab_size is not None and ids and (highest := max(ids)) >= self._vocab_size:
            token = str(self._tokenizer.convert_ids_to_tokens(highest))[:_SHOWN]
            raise InvalidArgument(
                f"the tokenizer writes {token!r} as token {highest}, outside the model's vocabulary of {self._vocab_size}\n"
                "hint: remove it from the text",
                field=field,
            )
        return ids

    def single_token(self, text: str) -> int | None:
        """The id of a text that is one token behind any other, and known to the tokenizer: the unknown token stands for anything.

        A tokenizer of words that cannot write it there has perhaps one for it with its space.
        """
        try:
            ids = self.continuation.encode(text, "text")
        except InvalidArgument:
            ids = self.encode(text, special_tokens=False)
        is_it = len(ids) == 1 and self.decode(ids, skip_special_tokens=False).strip().casefold() == text.strip().casefold()
        return ids[0] if is_it and ids[0] != self._tokenizer.unk_token_id else None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids, with nothing cleaned up."""
        if len(ids) > _LONG and self._tokenizer.is_fast:  # without Python's lock: the event loop goes on meanwhile
            return str(self._tokenizer.backend_tokenizer.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)[0])
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    def encode_chat(self, messages: list[dict[str, str]], field: str, allow_control_tokens: bool = False) -> list[int]:
        """Ids of a conversation up to where the assistant's reply begins."""
        self._check_messages(messages, field)
        messages, breaker = self.guarded(messages, allow_control_tokens)
        return self._written(self.chat_template.render(messages, field), breaker, field)

    def encode_next_turns(
        self, messages: list[dict[str, str]], last_token_id: int, eos_ids: frozenset[int], field: str, allow_control_tokens: bool = False
    ) -> list[int]:
        """Ids that follow an assistant's reply when `messages` come next; only these turns are rendered.

        The template's own text after a reply is found by rendering a stand-in. A reply has one end: what the template writes up to its
        end token, perhaps a space before it, is left out if the sampled reply ended with that token, or with another EOS in its place.
        """
        self._check_messages(messages, field)
        ids = self._after_reply(messages, field, allow_control_tokens)
        marks = self._special_ids | eos_ids | {self.turn_end_id}
        ends = {last_token_id} & marks
        if last_token_id in eos_ids:
            closing = self._after_reply([], field)
            ends.update([token for token in closing[:_LEAD] if token in marks][:1])
        num_left_out = next((index + 1 for index, token in enumerate(ids[:_LEAD]) if token in ends), 0)
        return ids[num_left_out:]

    def encode_from(self, before: list[int], ids: list[int], text: str, field: str, allow_control_tokens: bool = False) -> list[int]:
        """Ids of `text`, which continues `before`, that begin with `ids` as far as these agree with it; only what is left is tokenised."""
        length, decode = len(ids), self.decode_after(before)
        while not text.startswith(start := decode(ids[:length])):
            length -= 1
        rest = text[len(start) :]
        return [*ids[:length], *self.encode_after([*before, *ids[:length]], rest, field, is_content=not allow_control_tokens)]

    def encode_transcript(self, text: str, breaker: str, field: str) -> list[int]:
        """Ids of a transcript from its first turn on, whose contents were `guarded`."""
        if not breaker:
            return self.encode(text)
        begin, _ = self._frame
        return [*begin, *self._written(text, breaker, field)]

    def guarded(self, messages: list[dict[str, str]], allow_control_tokens: bool = False) -> tuple[list[dict[str, str]], str]:
        """(messages whose control tokens are broken, the character that breaks them; "" if there is nothing to break)."""
        breaker = "" if allow_control_tokens else self.control_tokens.breaker(message["content"] for message in messages)
        return [{**message, "content": self.control_tokens.broken(message["content"], breaker)} for message in messages], breaker

    def without_end(self, ids: list[int]) -> list[int]:
        """A reply's ids without the special tokens that it ended with, such as an EOS: they are no text."""
        special = self._special_ids
        return ids[: max((index + 1 for index, token in enumerate(ids) if token not in special), default=0)]

    def stream(self, stops: tuple[str, ...], keep_stop: bool, before: Sequence[int] = ()) -> TextStream:
        """A fresh text for one sample, which continues `before`."""
        return TextStream(self.decode, stops, keep_stop, self.continuation.context if self._holds_text(before) else ())

    @functools.cached_property
    def continuation(self) -> Continuation:
        """How this tokenizer writes text behind other text."""
        unknown, backend = self._tokenizer.unk_token_id, getattr(self._tokenizer, "backend_tokenizer", None)
        ordinary = (token for token in range(len(self._tokenizer)) if token not in self._special_ids)
        kind = type(backend.model).__name__ if backend is not None else type(self._tokenizer).__name__
        return Continuation(self, kind=kind, special_ids=self._special_ids - {unknown}, spare_ids=ordinary)

    def _holds_text(self, ids: Sequence[int]) -> bool:
        """Whether anything but special tokens is among them: a BOS alone leaves what follows at the beginning of a text."""
        return any(token not in self._special_ids for token in ids)

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        """All that are no text; `all_special_ids` lists only those with a role (EOS, padding), so not every template's end token."""
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(self._tokenizer.all_special_ids) | {token_id for token_id, token in added if token.special}

    @functools.cached_property
    def control_tokens(self) -> control.ControlTokens:
        return control.ControlTokens.of(self._tokenizer)

    @functools.cached_property
    def chat_template(self) -> ChatTemplate:
        return chat_template.examine(self._tokenizer)

    @functools.cached_property
    def turn_end_id(self) -> int | None:
        """The added token, special or not, with which the chat template ends a reply; None if it writes none."""
        try:
            closing = self._after_reply([], "")
        except PolyheadError:
            return None
        added = self._tokenizer.added_tokens_decoder
        return next((token for token in closing[:_LEAD] if token in added and not added[token].content.isspace()), None)

    def report_chat(self, eos_ids: frozenset[int]) -> None:
        """What an operator has to know of the chat template, into the log."""
        chat_template.report(self.chat_template)
        if (end := self.turn_end_id) is not None and end not in eos_ids:
            logger.warning(
                "the chat template ends a turn with %r (token %d), no EOS of the model: prompts that it renders stop there",
                self._tokenizer.convert_ids_to_tokens(end),
                end,
            )

    def stop_id(self, stop: str) -> int | None:
        """The id of a stop string that is a control token: no text will hold it."""
        return self.control_tokens.ids.get(stop)

    def control_token_in(self, text: str) -> str:
        """The first control token in a text, "" if there is none."""
        return self.control_tokens.first_in(text)

    @functools.cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind any text."""
        for probe in _PROBES:
            try:
                inner, whole = (list(self._tokenizer.encode(probe, add_special_tokens=special)) for special in (False, True))
            except Exception:  # a tokenizer without an unknown token, and without this letter
                continue
            if inner and (at := next((index for index in range(len(whole)) if whole[index : index + len(inner)] == inner), -1)) >= 0:
                return whole[:at], whole[at + len(inner) :]
        return [], []

    def _guarded_text(self, text: str, is_content: bool) -> tuple[str, str]:
        [message], breaker = self.guarded([{"content": text}], allow_control_tokens=not is_content)
        return message["content"], breaker

    def _written(self, text: str, breaker: str, field: str) -> list[int]:
        """Ids of a text whose contents were `guarded`."""
        return self.control_tokens.encode(text, breaker, field) if breaker else self.encode(text, special_tokens=False)

    def _written_behind(self, text: str, breaker: str, field: str) -> list[int]:
        """The same behind any text whatever."""
        if not breaker:
            return self.continuation.encode(text, field)
        return self.continuation.encode(text, field, lambda part: self.control_tokens.encode(part, breaker, field), breaker)

    def _after_reply(self, messages: list[dict[str, str]], field: str, allow_control_tokens: bool = False) -> list[int]:
        """Ids that the template writes behind a reply: up to where the next one begins, or, without messages, to close this one."""
        before = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _STAND_IN}]
        messages, breaker = self.guarded(messages, allow_control_tokens)
        text = self.chat_template.render([*before, *messages], field, opens_reply=bool(messages))
        _, found, following = text.partition(_STAND_IN)
        if not found:
            why = "the model's chat template rewrites replies, so a conversation cannot be continued from ids"
            raise FailedPrecondition(why, field=field)
        return self._written_behind(following, breaker, field)

    def _check_messages(self, messages: list[dict[str, str]], field: str) -> None:
        if not messages:
            raise InvalidArgument("no messages", field=field)
        for index, message in enumerate(messages):
            if message["role"] not in ROLES:
                raise InvalidArgument(f"unknown role: {message['role'][:40]!r}", field=f"{field}[{index}].role")
        if messages[-1]["role"] == "assistant":
            raise InvalidArgument(
                "the last message is the assistant's own: use assistant_prefix to open a reply", field=f"{field}[{len(messages) - 1}].role"
            )


def _drop_length_limits(tokenizer: Any) -> None:
    """Switch off truncation and padding that a training left in `tokenizer.json`: they would change texts."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()


class TextStream:
    """A sample's text, as its ids come. Holds back half characters, and text that may turn out to begin a stop string.

    >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), stops=("END",), keep_stop=False)
    >>> [stream.push(byte) for byte in "é EN".encode()]
    ['', 'é', ' ', '', '']
    >>> stream.push(ord("D")), stream.matched_stop, stream.text
    ('', 'END', 'é ')
    """

    def __init__(self, decode: Decode, stops: tuple[str, ...], keep_stop: bool, context: Sequence[int] = ()) -> None:
        """The sample's ids are decoded behind those of `context`, whose text is not the sample's."""
        self.text = ""
        self.matched_stop = ""
        self._decode = decode
        self._stops = stops
        self._stop_starts = {stop[:length] for stop in stops for length in range(1, len(stop))}
        self._longest_start = max(map(len, self._stop_starts), default=0)
        self._keep_stop = keep_stop
        self._ids = list(context)
        self._window_from = 0  # ids from here on are decoded again, for the context that joins words
        self._whole_to = len(context)  # ids up to here make whole characters
        self._num_taken = len(decode(context)) if context else 0  # characters of the window that are in `text`, or before it
        self._num_given = 0  # characters handed out

    def push(self, token_id: int) -> str:
        """Take one more id and return the new text that is certain."""
        self._ids.append(token_id)
        window = self._decode(self._ids[self._window_from :])
        num_before = self._num_taken
        certain = len(window.rstrip(_HALF_CHARACTER))  # an unfinished character is one mark, or one for each of its bytes
        self._take_up_to(window, certain)
        if certain == len(window) == num_before > 0:
            del self._ids[self._whole_to :]  # a special token says nothing: the context before it is the next one's, too
        elif certain == len(window):
            self._window_from, self._whole_to = self._whole_to, len(self._ids)
            self._num_taken = len(self._decode(self._ids[self._window_from :]))
        elif (len(self._ids) - self._whole_to) % _LONGEST_WINDOW == 0:
            self._shorten(window)
        return self._give(len(self.text) if self.matched_stop else len(self.text) - self._num_doubtful())

    def finish(self) -> str:
        """Return the text that was held back; nothing follows."""
        if not self.matched_stop:
            window = self._decode(self._ids[self._window_from :])
            self._take_up_to(window, len(window))
        return self._give(len(self.text))

    def _take_up_to(self, window: str, end: int) -> None:
        if end > self._num_taken:
            self._extend(window[self._num_taken : end])
            self._num_taken = end

    def _shorten(self, window: str) -> None:
        """Bytes that never make a character would let the window grow without end: cut it between two characters."""
        for cut in range(len(self._ids) - 4, self._window_from, -1):  # a character has at most 4 tokens
            head, rest = self._decode(self._ids[self._window_from : cut]), self._decode(self._ids[cut:])
            if head + rest == window:
                self._take_up_to(window, len(head))
                self._window_from = self._whole_to = cut
                self._num_taken -= len(head)
                return

    def _extend(self, new: str) -> None:
        """Add text and cut at the earliest stop string, the longest of those that begin at one place."""
        searched = max(0, len(self.text) - max((len(stop) for stop in self._stops), default=0))
        self.text += new
        places = [(self.text.find(stop, searched), -len(stop), stop) for stop in self._stops]
        found = min((place for place in places if place[0] >= 0), default=None)
        if found is not None:
            start, _, self.matched_stop = found
            self.text = self.text[: start + len(self.matched_stop) if self._keep_stop else start]

    def _num_doubtful(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(self._longest_start, len(self.text))
        return next((length for length in range(longest, 0, -1) if self.text[-length:] in self._stop_starts), 0)

    def _give(self, end: int) -> str:
        given = self.text[self._num_given : end]
        self._num_given = max(self._num_given, end)
        return given
