"""When a call that failed goes on at another replica, and after which wait. The same for both APIs; does not wait itself."""

from __future__ import annotations

from polyhead.client.errors import NotFound, PolyheadError, Unavailable
from polyhead.client.fleet.routing import Replicas
from polyhead.client.transport import MAX_RETRIES, Deadline

__all__ = ["Attempts"]

PAUSE_S = 0.5  # after every replica was tried, where none says when to come again


class Attempts:
    """Of one call."""

    def __init__(self, replicas: Replicas, deadline: Deadline) -> None:
        self.tried: list[str] = []
        self._replicas = replicas
        self._deadline = deadline
        self._num_rounds = 0

    def failed(self, address: str, error: PolyheadError) -> float:
        """Seconds until the next attempt. Raises `error` if there is none.

        UNAVAILABLE is tried elsewhere; so is NOT_FOUND once, since a follower gets stored versions some time after it serves.
        """
        is_lacking = isinstance(error, NotFound) and address not in self.tried and len(self._replicas.addresses()) > 1
        if not isinstance(error, Unavailable) and not is_lacking:
            raise error
        self.tried.append(address)
        if isinstance(error, Unavailable) and error.retry_after_s is None:
            self._replicas.set_down(address)
        if any(other not in self.tried for other in self._replicas.addresses()):
            return 0.0
        self.tried.clear()
        self._num_rounds += 1
        wait_s, remaining = error.retry_after_s or PAUSE_S, self._deadline.remaining()
        if is_lacking or self._num_rounds > MAX_RETRIES or (remaining is not None and wait_s >= remaining):
            raise error
        return wait_s
