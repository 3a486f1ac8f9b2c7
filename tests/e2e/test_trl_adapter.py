"""The TRL adapter on a real server, with a trainer that is only what the adapter reads of one. TRL's own trainers: `make test-trl`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from polyhead.client import Client, Fleet, HeadKind
from polyhead.client.integrations import trl
from polyhead.client.integrations.trl import Reward, Rollout, client_of, column, freeze_trunk
from polyhead.client.local import LocalServer
from polyhead.client.results.results import ValueScore
from tests.e2e.support import serving

ARGS = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0, max_completion_length=5)
ASKED = [[{"role": "user", "content": text}] for text in ("Why?", "How?")]


@pytest.fixture(scope="module")
def server(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tied_model, tmp_path_factory.mktemp("trl") / "store") as opened:
        yield opened


@pytest.fixture
def trainer(server: LocalServer, tied_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tied_model, dtype=torch.float32)
    freeze_trunk(model, server.address)
    accelerator = SimpleNamespace(is_main_process=True, num_processes=1, process_index=0, unwrap_model=lambda wrapped: wrapped)
    return SimpleNamespace(state=SimpleNamespace(global_step=0), args=ARGS, model=model, accelerator=accelerator)


def test_rollouts_are_the_trained_models(server: LocalServer, trainer: Any) -> None:
    """One push a step; log-probs are those of the weights in the trainer; a prompt's repeats are its samples; no two calls draw alike.

    The address is a fleet's, of which one server is away.
    """
    servers = f"127.0.0.1:1,{server.address}"
    assert isinstance(client_of(servers), Fleet)
    rollout = Rollout(servers, score=["preference", "rule"], rules=["no-insults"])
    prompts = [ASKED[0]] * 2 + [ASKED[1]] * 3
    drawn = []
    for step in (0, 0, 1):
        trainer.state.global_step = step
        with torch.no_grad():
            dict(trainer.model.named_parameters())["model.layers.3.mlp.down_proj.weight"].add_(0.5 * step)
        drawn.append(rollout(prompts, trainer))
    versions = [set(each["polyhead_version"]) for each in drawn]
    assert versions[0] == versions[1] == {min(versions[2]) - 1}
    assert drawn[0]["completion_ids"] != drawn[1]["completion_ids"]
    for key, value in drawn[2].items():
        assert (type(value), len(value)) == (list, 5), key
    with Client(server.address) as client:
        assert drawn[2]["prompt_ids"] == [client.tokenize(prompt) for prompt in prompts]
    for prompt, completion, logprobs in zip(*(drawn[2][key] for key in ("prompt_ids", "completion_ids", "logprobs")), strict=True):
        with torch.no_grad():
            logits = trainer.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        ours = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(ours, torch.tensor(logprobs), atol=1e-4, rtol=0)
    assert max(map(abs, drawn[0]["polyhead_kl"])) < 1e-4 < max(map(abs, drawn[2]["polyhead_kl"]))
    assert column("kl", -2.0)(**drawn[2]) == [-2.0 * kl for kl in drawn[2]["polyhead_kl"]]
    with pytest.raises(ValueError, match="no column 'nothing': kl, preference, rule, version"):
        column("nothing")(**drawn[2])


def test_a_trained_trunk_is_refused(server: LocalServer, trainer: Any) -> None:
    trainer.model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"this parameter is trained: model.embed_tokens.weight\nhint: call freeze_trunk"):
        Rollout(server.address)(ASKED, trainer)


def test_what_is_frozen_already_stays_so(server: LocalServer, trainer: Any) -> None:
    """A layer of the head that was frozen before was trained again."""
    last = dict(trainer.model.named_parameters())["model.norm.weight"].requires_grad_(False)
    names = freeze_trunk(trainer.model, server.address)
    assert not last.requires_grad
    assert {name.split(".")[2] for name in names} == {"2", "3"}


def test_a_tied_output_stands_for_the_embedding(server: LocalServer, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may hold it under the output's name alone."""
    trunk = client_of(server.address).trunk()
    tensors = {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in trunk.tensors.items()}
    monkeypatch.setattr(trl, "client_of", lambda *place: SimpleNamespace(trunk=lambda: SimpleNamespace(tensors=tensors)))
    trainer.model.requires_grad_(True)
    assert "model.embed_tokens.weight" not in freeze_trunk(trainer.model, "nowhere")
    assert "model.embed_tokens.weight" not in trl.head_weights(trainer.model, trl.client_of("nowhere"))


def test_a_model_that_peft_wrapped_is_refused(server: LocalServer, trainer: Any) -> None:
    """Its names have a prefix, so that none was the trunk's: all of it was trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        adapted = get_peft_model(trainer.model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], layers_to_transform=[3]))
    before = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    with pytest.raises(ValueError, match=r"lacks (\d+) of the \1 tensors of the trunk: model.embed_tokens.weight\nhint: give the"):
        freeze_trunk(adapted, server.address)
    assert {name: parameter.requires_grad for name, parameter in adapted.named_parameters()} == before
    trainer.model = adapted
    with pytest.raises(ValueError, match="tensors of the trunk"):
        Rollout(server.address)(ASKED, trainer)


def test_a_reward_is_a_direct_call(server: LocalServer) -> None:
    """Also as a copy, which AsyncGRPO sends to another process; conversational and plain; the ids that were drawn count, not their text."""
    reward = copy.deepcopy(Reward(server.address, "rule", rules=["no-insults"], weight=3.0))
    client = client_of(server.address)
    logged: dict[str, float] = {}
    found = reward(
        prompts=ASKED,
        completions=[[{"role": "assistant", "content": "ab"}], [{"role": "assistant", "content": "cd"}]],
        completion_ids=[[90, 91], None],
        log_metric=logged.__setitem__,
    )
    direct = client.score([(ASKED[0], [90, 91]), (ASKED[1], "cd")], heads=["rule"], rules=["no-insults"])
    assert found == [3.0 * item.scores["rule"].p_follow["no-insults"] for item in direct]
    assert logged == {"polyhead_rule_version": direct[0].scores["rule"].version}
    assert reward.__name__ == "polyhead_rule"
    assert Reward(server.address)(prompts=["a"], completions=["b"]) == [0.0]  # a preference head that nobody trained


def test_an_item_that_failed_has_no_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one has no scores, where its version was looked up."""
    scored = SimpleNamespace(error="", scores={"value": value_of(4)})
    items = [SimpleNamespace(error="its numbers are not finite", scores={}), scored]
    monkeypatch.setattr(trl, "client_of", lambda *place: SimpleNamespace(score=lambda *asked, **options: items))
    logged: dict[str, float] = {}
    assert Reward("nowhere", "value")(prompts=["a", "a"], completions=["b", "c"], log_metric=logged.__setitem__) == [None, 0.5]
    assert logged == {"polyhead_value_version": 4.0}


def value_of(version: int) -> ValueScore:
    return ValueScore("value", HeadKind.VALUE, version, "", "", values=np.array([0.5], np.float32), bootstrap_value=0.0)
