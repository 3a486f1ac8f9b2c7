"""What the Ray application is made of, without Ray: the place of a follower, the number of followers."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from polyhead.client.integrations.ray.places import FollowerPlace
from polyhead.client.integrations.ray.scaling import OPEN_REQUESTS, ByOpenRequests, open_requests


def test_followers_of_a_node_have_places_of_their_own_and_find_them_again(tmp_path: Path) -> None:
    first, second = FollowerPlace(tmp_path / "a", "127.0.0.1"), FollowerPlace(tmp_path / "a", "127.0.0.1")
    assert first.store != second.store
    assert first.port != second.port
    left = (second.store, second.port)
    second.leave()
    again = FollowerPlace(tmp_path / "a", "127.0.0.1")
    assert (again.store, again.port) == left
    first.leave()
    again.leave()


@pytest.mark.parametrize(("reported", "count"), [({}, 3), ({"a": 0.0}, 0), ({"a": 4.0, "b": 4.0}, 2), ({"a": 9.0}, 3)])
def test_one_follower_for_so_many_open_requests(reported: dict[str, float], count: int) -> None:
    """Without a report the number stays; Ray keeps it between min and max."""
    context = SimpleNamespace(aggregated_metrics={OPEN_REQUESTS: reported}, target_num_replicas=3)
    assert ByOpenRequests(4)(context) == (count, {})


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        lines = ("# TYPE polyhead_requests_waiting gauge", "polyhead_requests_waiting 3.0", "polyhead_requests_running 2.0", 'a{b="c"} 1.0')
        self.wfile.write("\n".join(lines).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_reports_its_open_requests() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert open_requests(server.server_port) == {OPEN_REQUESTS: 5.0}
        thread.join()
