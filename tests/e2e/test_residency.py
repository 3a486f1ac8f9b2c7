"""Many heads at once: two preference heads on one text, three snapshots of a policy in one request, and what the status says of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from polyhead.client import Arm, Client
from polyhead.client.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from polyhead.client.local import LocalServer
from polyhead.client.results.records import ResidentName
from tests.e2e.forked import FORKED, start
from tests.e2e.support import (
    FIRST_TOKEN,
    PROMPT,
    assert_blocks_returned,
    constant_policy,
    constant_value,
    eventually,
    fresh_salt,
    serving,
    wait_until_running,
)

BUDGET = 600_000  # some seven policy heads
COMPLETION = [80, 81, 82, 83]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    store = tmp_path_factory.mktemp("residency") / "store"
    with serving(tiny_model, store, "--memory-budget", str(BUDGET), "--keep-versions", "100", max_idle_per_name=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    """Beside the first heads: `preference-test` of other weights, active; policy@2 and policy@3, which give one token each, not active."""
    with Client(server.address, timeout=60) as opened:
        for number in (2, 3):
            assert opened.push_head("policy", constant_policy(opened, FIRST_TOKEN + number), kind="policy") == number
        opened.push_head("preference", constant_value(opened, 2.0), kind="preference")
        opened.push_head("preference-test", constant_value(opened, 5.0), kind="preference", bias=1.0)
        opened.activate({"preference": 2, "preference-test": 1})
        yield opened
        assert_blocks_returned(opened)


def held(client: Client) -> dict[str, ResidentName]:
    return {row.name: row for row in client.status().resident_names}


def test_two_preference_heads_score_one_text_in_one_trunk_pass(client: Client) -> None:
    """HH's split: one head to train against, one to watch it with. The second one costs no trunk token."""
    before = client.status().counters
    item = client.score([(PROMPT, COMPLETION)], heads=["preference", "preference-test"], cache_salt=fresh_salt())[0]
    after = client.status().counters
    train, test = item.scores["preference"], item.scores["preference-test"]
    assert (train.raw, train.value) == pytest.approx((2.0, 2.0), abs=1e-3)
    assert (test.raw, test.bias, test.value) == pytest.approx((5.0, 1.0, 4.0), abs=1e-3)
    assert train.digest != test.digest
    num_tokens = len(PROMPT) + len(COMPLETION)
    assert after["trunk_tokens"] - before["trunk_tokens"] == num_tokens
    assert after["head_tokens"] - before["head_tokens"] == 2 * num_tokens


def test_three_snapshots_of_a_policy_generate_as_arms_of_one_request(client: Client) -> None:
    """Each sample names the exact version that drew it; the prompt goes through the trunk once for all."""
    arms = [Arm("policy@1", 2), Arm("policy@2", 2), Arm("policy@3", 2)]
    before = client.status().counters
    samples = client.generate([PROMPT], arms=arms, max_new_tokens=5, ignore_eos=True, seed=1, cache_salt=fresh_salt())
    after = client.status().counters
    assert [sample.head_version for sample in samples] == [1, 1, 2, 2, 3, 3]
    assert [(span.start, span.end, span.version) for sample in samples for span in sample.spans] == [(0, 5, v) for v in (1, 1, 2, 2, 3, 3)]
    for sample in samples:
        assert sample.served.head_versions == {"policy@1": 1, "policy@2": 2, "policy@3": 3}
        if sample.head_version > 1:
            assert sample.token_ids == [FIRST_TOKEN + sample.head_version] * 5
    assert len({sample.digest for sample in samples}) == 3
    assert after["trunk_tokens"] - before["trunk_tokens"] == len(PROMPT) + 6 * 4


def test_status_shows_each_names_versions_and_requests_while_they_run(server: LocalServer, client: Client) -> None:
    arms = [Arm(f"policy@{version}", 1) for version in (1, 2, 3)]
    with client.samples([PROMPT], arms=arms, max_new_tokens=400, ignore_eos=True, score=["preference-test"]) as samples:
        reader = threading.Thread(target=lambda: [None for _ in samples])
        reader.start()
        wait_until_running(client)
        status = client.status()
        reader.join(60)
    names = {row.name: row for row in status.resident_names}
    assert names["policy"].versions == (1, 2, 3)
    assert (names["policy"].active_version, names["policy"].num_leases) == (1, 1)
    assert (names["preference-test"].active_version, names["preference-test"].num_leases) == (1, 1)
    assert names["preference"].num_leases == 0
    sizes = {reference: head.num_bytes for head in status.resident_heads for reference in head.references}
    assert names["policy"].num_bytes == sum(sizes[f"policy@{version}"] for version in (1, 2, 3))
    assert status.head_bytes >= sum(head.num_bytes for head in status.resident_heads)
    assert status.memory_budget_bytes == BUDGET
    assert status.max_idle_per_name == 1


def test_unused_snapshots_go_down_to_the_limit_of_their_name(client: Client) -> None:
    """And of no other name: the two preference heads stay. The first preference costs nothing: its file is the active value head's."""
    client.generate([PROMPT], arms=[Arm(f"policy@{version}") for version in (1, 2, 3)], max_new_tokens=2)
    client.activate({"value": 1})  # any change trims
    names = held(client)
    assert len(names["policy"].versions) == 2
    assert names["policy"].versions[0] == 1
    assert names["preference"].versions == (1, 2)
    assert names["preference-test"].versions == (1,)


def test_the_budget_is_kept(client: Client) -> None:
    """Heads that cannot be in memory at once are refused; those that nobody uses make way for others."""
    size = next(head.num_bytes for head in client.status().resident_heads if "policy@1" in head.references)
    versions = [client.push_head("many", constant_policy(client, FIRST_TOKEN + 10 + i), kind="policy") for i in range(BUDGET // size + 2)]
    for version in versions:
        sample = client.generate([PROMPT], head=f"many@{version}", max_new_tokens=2, ignore_eos=True)[0]
        assert (sample.head_version, sample.token_ids) == (version, [FIRST_TOKEN + 9 + version] * 2)
        assert client.status().head_bytes <= BUDGET
    with pytest.raises(ResourceExhausted, match="no memory for another head"):
        client.activate({f"copy-{version}": client.copy_head(f"many@{version}", f"copy-{version}") for version in versions})
    assert client.status().head_bytes <= BUDGET
    assert client.generate([PROMPT], max_new_tokens=2, ignore_eos=True)[0].head_version == 1


@pytest.fixture(scope="module")
def uncollected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server whose garbage collector is off: what refers to itself in a circle stays."""
    folder = tmp_path_factory.mktemp("uncollected")
    (folder / "main.py").write_text("import gc\ngc.disable()\nfrom polyhead.client.cli.main import main\nmain()\n")

    def start_main(command: Sequence[str], **options: Any) -> Any:
        return start([command[0], str(folder / "main.py"), *command[command.index("serve") :]], **options)

    commands = mock.patch.object(FORKED, "Popen", start_main)
    with commands, serving(tiny_model, folder / "store") as server, Client(server.address, timeout=60) as opened:
        opened.push_head("many", constant_policy(opened, FIRST_TOKEN), kind="policy")
        yield opened


def generate_to_the_end(client: Client, head: str) -> None:
    client.generate([PROMPT] * 2, head=head, n=2, max_new_tokens=5, score=["policy", "value", head])


def stream_and_leave(client: Client, head: str) -> None:
    with client.stream(PROMPT, head=head, max_new_tokens=3000, ignore_eos=True) as pieces:
        next(iter(pieces))


def cancel_before_the_first_token(client: Client, head: str) -> None:
    with client.stream(PROMPT, head=head, max_new_tokens=3000, ignore_eos=True):
        pass


def score(client: Client, head: str) -> None:
    client.score([(PROMPT, COMPLETION), (PROMPT, COMPLETION[:2])], heads=[head, "policy"], cache_salt=fresh_salt())


def follow(client: Client, head: str) -> None:
    """An activation in the middle; the version that goes is the one that drew first."""
    client.activate({"many": int(head.partition("@")[2])})
    with client.stream(PROMPT, head="many", max_new_tokens=300, ignore_eos=True, on_swap="follow") as pieces:
        drawn = iter(pieces)
        next(drawn)
        client.activate({"many": 1})
        for _ in drawn:
            pass
    client.activate({"value": 1})  # a rollback needs the version no more


def abort_by_an_activation(client: Client, head: str) -> None:
    with client.stream(PROMPT, head=head, max_new_tokens=3000, ignore_eos=True, on_swap="abort") as pieces:
        next(drawn := iter(pieces))
        client.activate({"value": 1})
        for _ in drawn:
            pass
    assert pieces.sample.finish_reason == "aborted"


def miss_the_deadline(client: Client, head: str) -> None:
    with pytest.raises((DeadlineExceeded, ResourceExhausted)):  # on a busy machine it is refused at the door
        client.generate([PROMPT], head=head, max_new_tokens=3000, ignore_eos=True, timeout=0.1)


def ask_too_much(client: Client, head: str) -> None:
    with pytest.raises(InvalidArgument):
        client.generate([PROMPT], head=head, max_new_tokens=10**6)


USES = [
    generate_to_the_end,
    stream_and_leave,
    cancel_before_the_first_token,
    score,
    follow,
    abort_by_an_activation,
    miss_the_deadline,
    ask_too_much,
]


@pytest.mark.parametrize("use", USES)
def test_weights_go_as_soon_as_nothing_uses_them(uncollected: Client, use: Callable[[Client, str], None]) -> None:
    """Not when the garbage collector comes by, which on a busy server may be never."""
    client = uncollected
    before = None
    for number in (1, 2, 3):
        version = client.push_head("many", constant_policy(client, FIRST_TOKEN + number), kind="policy")
        use(client, f"many@{version}")
        assert_blocks_returned(client)
        client.delete_head(f"many@{version}")
        before = before or client.status().head_bytes
    eventually(lambda: client.status().head_bytes <= before, what=f"{before} bytes of heads: {client.status().head_bytes}")
