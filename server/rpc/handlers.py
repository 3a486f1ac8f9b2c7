"""Handlers that are registered before the server listens and filled in when the model is there; until then UNAVAILABLE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from polyhead.heads.format.errors import Unavailable
from polyhead.server.rpc.methods import METHODS

RETRY_S = 2.0


class LateHandlers(grpc.GenericRpcHandler):
    """Stands in for a server when servicers are added: `add_XServicer_to_server(servicer, handlers)`.

    Adding to a running server is documented as unsafe; this handler is added before it starts.
    """

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._is_open = False

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """The same handlers once more, for a look-up that grpc.aio does not use."""

    def open(self) -> None:
        """All servicers are there."""
        self._is_open = True

    def service(self, handler_call_details: Any) -> Any:
        for handler in self._handlers if self._is_open else ():
            if (found := handler.service(handler_call_details)) is not None:
                return found
        if (
            not self._is_open
            and handler_call_details.method.startswith("/polyhead.")
            and handler_call_details.method in METHODS
        ):
            return grpc.stream_stream_rpc_method_handler(_refuse_while_starting)  # it answers before a message has come
        return None


async def _refuse_while_starting(requests: Any, context: Any) -> None:
    raise Unavailable("the server is starting", retry_after_s=RETRY_S)
