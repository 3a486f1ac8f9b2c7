"""A trainer beside the server: pushes heads through the public client, in a process that reads no streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyhead.client import Client
from polyhead.client.bench.ours import TIMEOUT_S, Weights, moved, timed, weights_of

HEAD = "policy"
FIRST_SEED = 500


class Trainer:
    """Makes its weights beforehand, so that a push is a push alone."""

    def __init__(self, address: str) -> None:
        self.about = {"engine": "a trainer", "version": ""}
        self._client = Client(address, timeout=TIMEOUT_S)
        self._prepared: list[Weights] = []

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        does: dict[str, Callable[..., dict[str, Any]]] = {"prepare": self._prepare, "push": self._push}
        arguments = {key: value for key, value in question.items() if key != "do"}
        return does[question["do"]](**arguments)

    def _prepare(self, pushes: int) -> dict[str, Any]:
        base = weights_of(self._client, HEAD)
        self._prepared = [moved(base, FIRST_SEED + index) for index in range(pushes)]
        return {}

    def _push(self) -> dict[str, Any]:
        weights = self._prepared.pop()
        return {"seconds": timed(lambda: self._client.update({HEAD: weights}))[0]}


def load(settings: dict[str, Any]) -> Trainer:
    return Trainer(settings["address"])
