"""help() shows every option with what it means, and an unknown one is answered with the one that was meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from polyhead.client import AsyncClient, Client
from polyhead.client.wire import options

METHODS = {
    "stream": options.StreamOptions,
    "generate": options.GenerateOptions,
    "samples": options.GenerateOptions,
    "score": options.ScoreOptions,
    "push": options.PushOptions,
    "push_head": options.PushOptions,
    "copy_head": options.CopyOptions,
}


@pytest.mark.parametrize("client_type", [Client, AsyncClient])
@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_a_parameter_with_a_meaning(client_type: type, name: str) -> None:
    """help(Client.generate) showed **options and nothing of them."""
    method = getattr(client_type, name)
    parameters = inspect.signature(method).parameters
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for option in METHODS[name].__annotations__:
        assert option in parameters
        assert re.search(rf"^    {option}: .{{10,}}Default: ", method.__doc__, re.MULTILINE), f"{option} has no text or no default"
    assert "InvalidArgument: `field` names" in method.__doc__


def test_the_shown_defaults_are_accepted(client: Client) -> None:
    shown = {name: each.default for name, each in inspect.signature(Client.generate).parameters.items() if each.kind is each.KEYWORD_ONLY}
    assert len(client.generate(["x"], **shown)) == 1


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda c: c.generate(["x"], max_tokens=5), "did you mean max_new_tokens=?"),
        (lambda c: c.generate(["x"], logprobs=1), "log-probs of the drawn tokens always come: sample.logprobs"),
        (lambda c: c.samples(["x"], num_return_sequences=2), "did you mean n=?"),
        (lambda c: c.stream("x", n=2), "it draws one sample"),
        (lambda c: c.generate(["x"], arms=[{"max_tokens": 5}]), "did you mean max_new_tokens=?"),
        (lambda c: c.score([("a", "b")], score=["value"]), "did you mean heads=?"),
        (lambda c: c.push("policy", {}, label=["best"]), "did you mean labels=?"),
        (lambda c: c.copy_head("policy", "reference", bais=1.0), "did you mean bias=?"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_was_meant(client: Client, call: Callable[[Client], Any], hint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"hint: {hint}")):
        call(client)
