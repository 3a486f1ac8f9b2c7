"""Teams on one server: what a team's prompts left in the cache is found by the team alone, and told to nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyhead.client import Client
from tests.e2e.support import serving

TOKENS = {
    "red-worker": ("worker", "red"),
    "red-trainer": ("trainer", "red"),
    "blue-worker": ("worker", "blue"),
    "blue-trainer": ("trainer", "blue"),
    "worker": ("worker", ""),
    "trainer": ("trainer", ""),
    "admin": ("admin", ""),
}
FITTED = 16


@dataclass
class Teams:
    """A client for each token."""

    clients: dict[str, Client]

    def computed(self, who: str, call: Callable[[Client], object]) -> int:
        """Tokens that a call sends through the trunk."""
        before = self.trunk_tokens
        call(self.clients[who])
        return self.trunk_tokens - before

    @property
    def trunk_tokens(self) -> int:
        return self.clients["admin"].status().counters["trunk_tokens"]


@pytest.fixture(scope="module")
def teams(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teams]:
    file = tmp_path_factory.mktemp("teams") / "tokens.toml"
    tables = [f'[[{role}]]\ntoken = "token-of-the-{who}"\nprincipal = "{who}"\nteam = "{team}"\n' for who, (role, team) in TOKENS.items()]
    file.write_text("".join(tables))
    file.chmod(0o600)
    with serving(tiny_model, file.parent / "store", "--tokens", str(file)) as server:
        yield Teams({who: Client(server.address, token=f"token-of-the-{who}") for who in TOKENS})


def prompt(number: int) -> list[int]:
    return [1, *random.Random(number).choices(range(70, 160), k=47)]


def fit(client: Client, number: int) -> None:
    prompts = [[*prompt(number), 100 + index] for index in range(FITTED)]
    client.fit_ood(f"fit-{number}", prompts)


CALLS: dict[str, Callable[[Client, int], object]] = {
    "generate": lambda client, number: client.generate([prompt(number)], max_new_tokens=1),
    "continue": lambda client, number: client.generate([prompt(number)], max_new_tokens=1, assistant_prefix="So"),
    "score": lambda client, number: client.score([(prompt(number), [80, 81])], heads=["reference"]),
    "rules": lambda client, number: client.score([(prompt(number), [80])], heads=["rule"], rules=["no-insults"]),
    "encode": lambda client, number: list(client.encode([prompt(number)])),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("first", ["red-worker", "worker"])
def test_no_other_team_finds_what_a_team_left_in_the_cache(teams: Teams, name: str, first: str) -> None:
    """One worker read another's prompts token by token: a guess that was cached cost no trunk token, and `num_cached_tokens` said so."""
    number = 10 * list(CALLS).index(name) + (first == "worker")

    def call(client: Client) -> object:
        return CALLS[name](client, number)

    cold = teams.computed(first, call)
    colleague = "red-trainer" if first == "red-worker" else "trainer"
    assert teams.computed(colleague, call) < cold - 32, "a team's workers and its trainer share their prompts"
    strangers = ["blue-worker", "worker"] if first == "red-worker" else ["blue-worker", "red-worker"]
    for stranger in strangers:
        assert teams.computed(stranger, call) == cold


def test_the_count_of_cached_tokens_is_of_ones_own_team(teams: Teams) -> None:
    def cached(who: str) -> int:
        [sample] = teams.clients[who].generate([prompt(90)], max_new_tokens=1)
        return sample.num_cached_tokens

    assert cached("red-worker") <= 1  # BOS
    assert cached("red-trainer") > 40
    assert max(cached("blue-worker"), cached("worker")) <= 1


def test_a_wait_that_shows_other_teams_work_is_told_to_an_admin_alone(teams: Teams) -> None:
    """A sample's own work is of its team's cache: everybody sees it."""
    for name, is_shown in (("red-worker", False), ("admin", True)):
        [sample] = teams.clients[name].generate([[1, 40, 41]], max_new_tokens=2, ignore_eos=True)
        [item] = teams.clients[name].score([([1, 40, 41], [42])], heads=["reference"])
        for work in (sample.work, item.work):
            assert work is not None
            assert work.head_tokens > 0
            assert (work.queue_seconds is not None) == is_shown


def test_a_fit_finds_no_other_teams_prompts(teams: Teams) -> None:
    """The prompts of one fit have one beginning: it is computed once, for each team."""
    cold = teams.computed("red-trainer", lambda client: fit(client, 95))
    assert teams.computed("red-trainer", lambda client: fit(client, 95)) < cold / 2
    assert teams.computed("blue-trainer", lambda client: fit(client, 95)) == cold


@pytest.mark.parametrize("salt", ["red", "\0red\0", "\0red", "red\0"])
def test_no_salt_leads_into_another_teams_cache(teams: Teams, salt: str) -> None:
    def call(client: Client, salt: str = "") -> int:
        [sample] = client.generate([prompt(96)], max_new_tokens=1, cache_salt=salt)
        return sample.num_cached_tokens

    call(teams.clients["red-worker"])
    assert call(teams.clients["worker"], salt) == 0
    assert call(teams.clients["blue-worker"], salt) == 0


def test_only_an_admin_sees_the_whole_caches_numbers(teams: Teams) -> None:
    """Trunk tokens of the whole server tell any worker whether the last prompt, whoever sent it, was found."""
    teams.clients["red-worker"].generate([prompt(97)], max_new_tokens=1)
    for who in ("red-worker", "red-trainer", "worker"):
        status = teams.clients[who].status()
        assert not {"trunk_tokens", "cache_hit_tokens", "prompt_tokens", "steps"} & set(status.counters)
        assert (status.num_used_blocks, status.num_cached_blocks, status.num_filled_head_blocks) == (0, 0, 0)
        assert status.counters["requests"] > 0
    status = teams.clients["admin"].status()
    assert status.counters["trunk_tokens"] > 0
    assert status.num_cached_blocks > 0
