"""Text as it comes: stop strings across token borders, half characters, and conversations continued from ids."""

from __future__ import annotations

import doctest
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.text import tokenizer as text_module
from polyhead.server.text.tokenizer import TextStream


def decode_bytes(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes: the worst case for characters and stop strings."""
    return bytes(ids).decode("utf-8", errors="replace")


def feed(text: str, stops: tuple[str, ...] = (), keep_stop: bool = False) -> tuple[TextStream, list[str]]:
    stream = TextStream(decode_bytes, stops, keep_stop)
    pieces = []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        if stream.matched_stop:
            break
    pieces.append(stream.finish())
    return stream, pieces


def test_the_example_runs() -> None:
    assert doctest.testmod(text_module) == doctest.TestResults(failed=0, attempted=3)


@given(st.text(alphabet="ab\n é€🙂", max_size=40), st.lists(st.text(alphabet="ab\n€", min_size=1, max_size=4), max_size=3))
def test_pieces_join_to_the_text_and_the_text_ends_at_the_first_stop(text: str, stops: list[str]) -> None:
    stream, pieces = feed(text, tuple(stops))
    assert "".join(pieces) == stream.text
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not ends:
        assert stream.text == text
        assert not stream.matched_stop
    else:
        first_complete = min(ends)[0]
        starts = [start for end, start in ends if end == first_complete]
        assert stream.matched_stop
        assert stream.text == text[: min(starts)]


def test_a_stop_string_can_be_kept() -> None:
    stream, pieces = feed("hello\n\nUser: more", ("\n\nUser:",), keep_stop=True)
    assert stream.text == "hello\n\nUser:" == "".join(pieces)
    assert stream.matched_stop == "\n\nUser:"


def test_nothing_is_shown_that_a_stop_would_take_back() -> None:
    stream = TextStream(decode_bytes, ("\n\nUser:",), keep_stop=False)
    shown = "".join(stream.push(byte) for byte in b"ok\n\nUs")
    assert shown == "ok"
    assert shown + stream.push(ord("h")) == "ok\n\nUsh"


def test_half_characters_wait() -> None:
    stream = TextStream(decode_bytes, (), keep_stop=False)
    assert [stream.push(byte) for byte in "🙂".encode()] == ["", "", "", "🙂"]


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    stream = TextStream(decode_bytes, (), keep_stop=False)
    for byte in "a🙂".encode()[:3]:
        stream.push(byte)
    stream.finish()
    assert stream.text.startswith("a")
    assert stream.text.endswith("\ufffd")


@pytest.mark.parametrize("stop", ["x", "xy", "xyx"])
def test_overlapping_stops(stop: str) -> None:
    stream, _ = feed("aaxyxb", (stop, "b"))
    assert stream.text == "aa"
    assert stream.matched_stop == stop


def decode_by_byte(ids: Sequence[int]) -> str:
    """As tokenizers with byte fallback do: an unfinished character is one mark for each of its bytes."""
    data, text = bytes(ids), ""
    while data:
        for length in range(1, 5):
            try:
                text, data = text + data[:length].decode(), data[length:]
                break
            except UnicodeDecodeError:
                continue
        else:
            text, data = text + "\ufffd", data[1:]
    return text


@given(st.text(alphabet="ab €日本🙂", max_size=30))
def test_byte_fallback_tokenizers_lose_no_character(text: str) -> None:
    """'a€b' came out with a replacement mark: all but the last mark of a half character were taken for certain."""
    stream = TextStream(decode_by_byte, (), keep_stop=False)
    pieces = [stream.push(byte) for byte in text.encode()] + [stream.finish()]
    assert stream.text == "".join(pieces) == text
