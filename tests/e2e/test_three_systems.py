"""Sparrow, InstructGPT and Anthropic's HH: each system's loop gets every quantity that it needs in one or two calls.

The rows are those of the reference table: generation, scoring, what raters see, and which heads are alive at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyhead.client import Arm, Client, Evidence, Sample, ScoredItem, blind, continue_from
from tests.e2e.support import WIDTH, assert_blocks_returned, serving

TURNS = [{"role": "user", "content": "How high is it?"}]
SEARCHED = [
    *TURNS,
    {"role": "search_query", "content": "height"},
    {"role": "search_results", "content": "Three metres."},
]
PROMPT = "How high is it?"


@pytest.fixture(scope="module")
def client(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Three policy snapshots, two preference models (with and without evidence, or train and test), value, reference, rule."""
    with serving(tiny_model, tmp_path_factory.mktemp("systems") / "store") as server, Client(server.address, timeout=60) as opened:
        for seed in (1, 2):
            opened.activate({"policy": opened.push_head("policy", moved(opened, "policy@1", seed))})
        opened.activate(
            {
                "preference": opened.push_head("preference", moved(opened, "preference@1", 3), kind="preference", bias=0.5),
                "preference-test": opened.push_head("preference-test", moved(opened, "preference@1", 4), kind="preference"),
                "value": opened.copy_head("preference", "value", kind="value"),
            }
        )
        opened.fit_ood("normal", [f"Prompt number {index}." for index in range(20)])
        yield opened
        assert_blocks_returned(opened)


def moved(client: Client, reference: str, seed: int) -> dict[str, np.ndarray]:
    """The same head a little off; a score of zeros becomes a random one."""
    random = np.random.default_rng(seed)
    tensors = {name: np.array(value) for name, value in client.pull_head(reference).items()}
    last = "score.weight" if "score.weight" in tensors else "lm_head.weight"
    change = random.normal(size=tensors[last].shape) * (1.0 if last == "score.weight" else 0.02)
    return {**tensors, last: (tensors[last] + change).astype(np.float32)}


def assert_can_be_replayed(client: Client, sample: Sample) -> None:
    """Every answer names trunk, tokenizer, head version, parameters and seed: enough to draw it again."""
    trunk = client.trunk()
    assert (sample.served.trunk_id, sample.served.tokenizer_sha256) == (trunk.trunk_id, trunk.tokenizer_sha256)
    assert sample.request_id
    parameters = sample.sampling
    [again] = client.generate(
        [sample.prompt_token_ids],
        head=f"policy@{sample.head_version}",
        sample_seeds=[sample.sample_seed],
        temperature=parameters.temperature,
        max_new_tokens=parameters.max_new_tokens,
        stop=list(parameters.stop),
    )
    assert again.token_ids == sample.token_ids


class TestSparrow:
    """Two preference models and 23 rules on one dialogue; turns, evidence, rerank score and RL reward with their parts."""

    def test_generation(self, client: Client) -> None:
        """Rows 1 to 8: two candidates without evidence and two with it, in one call; formats, forced roles, validity, T and N."""
        samples = client.generate([TURNS, SEARCHED], n=2, format="sparrow", seed=3, max_new_tokens=12, delivery="groups")
        assert [sample.prompt_index for sample in samples] == [0, 0, 1, 1]
        for sample in samples:
            assert client.detokenize(sample.prompt_token_ids).endswith("\n\nSparrow:")
            assert len(sample.logprobs) == len(sample.sampling_logprobs) == len(sample.token_ids)
            assert [span.version for span in sample.spans] == [3]
            assert sample.sampling.stop == ("\n\nUser:",)
            assert sample.format == "sparrow@1"
            assert sample.valid == (not sample.invalid_reasons)
            assert sample.num_newlines >= 0
        assert_can_be_replayed(client, samples[0])
        [query] = client.generate([TURNS], format="sparrow", reply_role="search_query", max_new_tokens=4)
        assert client.detokenize(query.prompt_token_ids).endswith("\n\nSearch Query:")

    def test_scoring(self, client: Client) -> None:
        """Rows 10 to 15 and the 23 rules, in one call: both preference models, values, KL to the teacher, reward and its parts."""
        heads = ["reference", "value", "preference", "preference-test", "rule"]
        samples = client.generate(
            [TURNS], n=4, format="sparrow", seed=4, max_new_tokens=8, score=heads, rule_set="example-rules@1", recipe="sparrow"
        )
        for sample in samples:
            rules = sample.scores["rule"]
            assert len(rules.p_violate) == len(rules.answer_mass) == 23
            assert all(rules.p_violate[rule] + rules.p_follow[rule] == pytest.approx(1.0) for rule in rules.p_violate)
            assert (rules.rule_set, rules.template) == ("example-rules@1", "example-rule-prompt@2")
            assert len(sample.scores["reference"].logprobs) == len(sample.scores["value"].values) == len(sample.token_ids)
            assert sample.scores["preference"].raw - 0.5 == pytest.approx(sample.scores["preference"].value)
            assert sample.scores["preference"].raw != sample.scores["preference-test"].raw
            reward = sample.reward
            assert reward is not None
            assert set(reward.parts) == {"preference", "rules", "tokens", "newlines", "invalid"}
            composed = sum(reward.constants[name] * number for name, number in reward.parts.items())
            assert reward.reward == pytest.approx(composed, abs=1e-4)
        [best, *_] = client.generate(
            [TURNS], n=8, format="sparrow", seed=4, max_new_tokens=8, recipe="rerank", rule_set="example-rules", best=1
        )
        assert best.reward is not None
        assert best.reward.rank == 0
        assert len(best.ranking) == 8
        assert 0.0 <= best.reward.reward <= 1.0

    def test_raters(self, client: Client) -> None:
        """Rows 21 to 24: opaque ids in shuffled order with evidence cards, the key apart, the next turn behind the chosen one, a rule."""
        samples = client.generate([TURNS, SEARCHED], n=2, format="sparrow", seed=5, max_new_tokens=8, delivery="groups")
        card = Evidence(query="height", title="Heights", url="https://example.org", snippet="Three metres.")
        blinded = blind(samples, evidence=[None, None, card, card])
        shown = blinded.shown_json()
        assert all(set(candidate) == {"id", "text", "evidence"} for candidate in shown)
        key = blinded.key_json()
        assert {candidate["id"] for candidate in shown} == set(key)
        assert sorted(entry["with_evidence"] for entry in key.values()) == [False, False, True, True]
        chosen = blinded.continue_from(shown[0]["id"], [{"role": "user", "content": "And how wide?"}])
        [following] = client.generate([chosen], format="sparrow", max_new_tokens=4)
        assert following.num_cached_tokens > len(blinded.sample(shown[0]["id"]).prompt_token_ids) // 2
        [rules] = client.configurations("rule_set")
        assert (rules.reference, len(rules.rules)) == ("example-rules@1", 23)

    def test_heads(self, client: Client) -> None:
        """Policy, teacher, value, rule and two preference models are one generation."""
        assert set(client.status().active) == {"policy", "reference", "value", "rule", "preference", "preference-test"}


class TestInstructGpt:
    """Four to nine candidates from several models, values of a head of their own, a bias that is measured, KL at every token."""

    def test_generation(self, client: Client) -> None:
        arms = [Arm(head="policy", n=4), Arm(head="policy@1", n=3), Arm(head="reference", n=2)]
        samples = client.generate([PROMPT], arms=arms, seed=7, temperature=1.0, max_new_tokens=6, delivery="groups")
        assert [sample.head_version for sample in samples] == [3] * 4 + [1] * 5
        assert all(sample.sampling.temperature == 1.0 for sample in samples)
        pieces = list(client.stream(PROMPT, max_new_tokens=4, ignore_eos=True))
        assert sum(len(piece.token_ids) for piece in pieces) == 4

    def test_a_ppo_record_in_one_call(self, client: Client) -> None:
        """prompts, ids, logprobs, ref_logprobs, value, rewards, mask; the penalty once per token and once in all."""
        samples = client.generate([PROMPT], n=2, seed=8, max_new_tokens=6, score=["value"], recipe="kl", entropy=True, top_logprobs=3)
        for sample in samples:
            reward, reference = sample.reward, sample.scores["reference"]
            assert reward is not None
            assert reward.kl == pytest.approx(sample.logprobs - reference.logprobs, abs=1e-5)
            assert reward.with_kl == pytest.approx(reward.reward - reward.constants["kl_coefficient"] * reward.kl.sum(), abs=1e-5)
            assert reward.token_rewards.sum() == pytest.approx(reward.with_kl, abs=1e-5)
            assert len(sample.scores["value"].values) == len(sample.token_ids)
            assert sample.scores["value"].bootstrap_value == 0.0 or not sample.terminated
            assert len(reference.entropies) == len(sample.token_ids)
            assert reference.top_logprobs.shape == (len(sample.token_ids), 3)

    def test_log_probs_of_pretraining_text(self, client: Client) -> None:
        """Row 9 on any text, under any snapshot: the PPO ratio, and the ptx term."""
        [item] = client.score([("Once upon a", " time there was a tower.")], heads=["policy", "policy@1", "policy@2"])
        assert len({item.scores[name].logprobs.tobytes() for name in item.scores}) == 3

    def test_the_bias(self, client: Client) -> None:
        """Row 12: demonstrations score 0 on average, and the version says so."""
        demonstrations = [(f"Question {index}?", f" Answer {index}.") for index in range(5)]
        calibration = client.calibrate("preference-test", demonstrations)
        version = f"preference-test@{calibration.version}"
        values = [item.scores[version].value for item in client.score(demonstrations, heads=[version])]
        assert np.mean(values) == pytest.approx(0.0, abs=1e-5)

    def test_an_averaged_policy_is_an_ordinary_version(self, client: Client) -> None:
        """An EMA head, made by the trainer: pushed under a name of its own, live beside the policy."""
        now, before = (client.pull_head(f"policy@{version}") for version in (3, 2))
        version = client.push_head("policy-ema", {name: 0.5 * (now[name] + before[name]) for name in now}, kind="policy")
        [sample] = client.generate([PROMPT], head=f"policy-ema@{version}", max_new_tokens=3)
        assert (sample.head, sample.head_version) == (f"policy-ema@{version}", version)

    def test_raters(self, client: Client) -> None:
        samples = client.generate([PROMPT], arms=[Arm(head="policy", n=2), Arm(head="policy@1", n=2)], seed=9, max_new_tokens=4)
        assert len({candidate.id for candidate in blind(samples).shown}) == 4


class TestAnthropicHh:
    """Several snapshots and two preference models at once, rejection sampling with argmax and median, a strange prompt noticed."""

    def test_generation(self, client: Client) -> None:
        """Two replies of two models, held until both are complete; sixteen drawn for rejection sampling; a stream of one."""
        shown = client.generate([PROMPT], arms=[Arm(head="policy@2"), Arm(head="policy@3")], delivery="groups", max_new_tokens=4)
        assert [sample.head_version for sample in shown] == [2, 3]
        [first, *_] = client.stream(PROMPT, head="policy@1", max_new_tokens=4, priority="interactive")
        assert first.token_ids

    def test_rejection_sampling(self, client: Client) -> None:
        """Row 14: argmax and median of 17 by the preference model, and the order of all."""
        drawn = client.generate([PROMPT], n=17, seed=11, max_new_tokens=6, recipe="preference", best=1, median=True)
        best, median = drawn
        rewards = [place.reward for place in best.ranking]
        assert rewards == sorted(rewards, reverse=True)
        assert best.reward is not None
        assert median.reward is not None
        assert (len(rewards), best.reward.reward, median.reward.reward) == (17, rewards[0], rewards[8])

    def test_scoring(self, client: Client) -> None:
        """Rows 9 to 12: mean log-prob under every snapshot and both preference models, on one text with one pass through the trunk."""
        before = client.status().counters["trunk_tokens"]
        snapshots = ["policy@1", "policy@2", "policy@3"]
        [item] = client.score([("Is it tall?", " Yes, rather.")], heads=[*snapshots, "preference", "preference-test"], cache_salt="hh")
        assert client.status().counters["trunk_tokens"] - before == len(item.prompt_token_ids) + len(item.token_ids)
        assert len({float(item.scores[name].logprobs.mean()) for name in snapshots}) == 3
        assert item.scores["preference"].version != 0

    def test_activations_and_strange_prompts(self, client: Client) -> None:
        """Row 16 and 17: a named trunk layer pooled, the score of a fit, the boundary states themselves."""
        ids, trunk = client.tokenize(PROMPT), client.trunk()
        pooled = client.encode(ids, layer=trunk.tap_layer, pooling="mean")
        rows = client.encode(ids, layer=trunk.tap_layer)
        assert pooled.reshape(-1) == pytest.approx(rows.mean(axis=0), abs=1e-5)
        assert client.encode(ids).shape == (len(ids), WIDTH)
        items: list[ScoredItem] = client.score([(PROMPT, " Yes.")], heads=["preference"], ood="normal")
        assert items[0].ood is not None
        assert np.isfinite(items[0].ood.score)

    def test_raters(self, client: Client) -> None:
        """Row 23: the conversation goes on behind the chosen reply, without paying for it again."""
        [sample, _] = client.generate([TURNS], n=2, seed=12, max_new_tokens=6, delivery="groups")
        [following] = client.generate([continue_from(sample, TURNS)], max_new_tokens=3)
        assert following.num_cached_tokens >= len(sample.prompt_token_ids) + len(sample.token_ids) - 1

    def test_heads(self, client: Client) -> None:
        """Row 18: what is in memory, of which name, how much, and the way back."""
        client.generate([PROMPT], arms=[Arm(head=f"policy@{version}") for version in (1, 2, 3)], max_new_tokens=2)
        status = client.status()
        [policy] = [name for name in status.resident_names if name.name == "policy"]
        assert set(policy.versions) == {1, 2, 3}
        assert status.head_bytes <= status.memory_budget_bytes
        assert [generation.number for generation in client.generations()][:2] == [status.generation, status.generation - 1]
