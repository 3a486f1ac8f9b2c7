"""Adapters that PEFT made, through a real server: equal to PEFT's own model, in one batch, over one copy of the base."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from polyhead.client import Arm, AsyncClient, Client
from polyhead.client.cli.app import build_app
from polyhead.client.errors import FailedPrecondition
from polyhead.client.local import LocalServer
from tests.e2e.support import PROMPT, assert_blocks_returned, fresh_salt, serving

COMPLETION = list(range(80, 110))
# rank, alpha, rslora, patterns, targets: the ways in which adapters differ
CONFIGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 2, "lora_alpha": 3, "target_modules": r".*layers\.[23]\..*_proj", "use_rslora": True},
    {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ["o_proj", "down_proj"],
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.3.*": 9},
    },
]


def save_adapter(model: Path, folder: Path, seed: int, layers: tuple[int, ...] = (2, 3), **config: Any) -> PeftModel:
    """Random matrices, saved by PEFT; its own model of base and adapter."""
    if isinstance(config["target_modules"], list):  # a regular expression names layers itself
        config["layers_to_transform"] = list(layers)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(adapted.named_parameters()):
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def own_logprobs(model: Any, prompt: list[int], completion: list[int]) -> np.ndarray:
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0].float().log_softmax(-1)
    rows = logits[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(completion)[:, None])[:, 0].numpy()


def polyhead(server: LocalServer, *arguments: str) -> str:
    """A command's output."""
    environment = {"POLYHEAD_SERVER": server.address, "COLUMNS": "200"}
    done = CliRunner().invoke(build_app(arguments), [*arguments], env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def models(tiny_model: Path, folder: Path) -> list[PeftModel]:
    return [save_adapter(tiny_model, folder / str(index), index, **config) for index, config in enumerate(CONFIGS)]


@pytest.fixture(scope="module")
def server(tiny_model: Path, folder: Path) -> Iterator[LocalServer]:
    with serving(tiny_model, folder / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=120) as opened:
        yield opened
        assert_blocks_returned(opened)


@pytest.fixture(scope="module")
def names(client: Client, models: list[PeftModel], folder: Path) -> list[str]:
    """One active head for each adapter, all on policy@1."""
    names = [f"lora-{index}" for index in range(len(models))]
    for index, name in enumerate(names):
        version = client.push_head(name, folder / str(index), base="policy@1", metrics={"loss": 0.5 + index})
        client.activate({name: version})
    return names


def test_a_live_peft_model_is_the_folder_that_it_saves(client: Client, names: list[str], models: list[PeftModel]) -> None:
    """`push("policy", model)` takes the adapter out of it, with its config."""
    for name, model in zip(names, models, strict=True):
        stored = client.head(name)
        live = client.push(name, model, base=stored.manifest.base, validate_only=True)
        assert (live.head.file_sha256, live.head.manifest.lora) == (stored.file_sha256, stored.manifest.lora)
        assert live.same_file_as == stored.ref


def test_scores_equal_pefts_own_model(client: Client, names: list[str], models: list[PeftModel]) -> None:
    """Every adapter and the base score one text in one call, in one pass through the head's layers."""
    before = client.status().counters
    item = client.score([(PROMPT, COMPLETION)], heads=[*names, "policy"], cache_salt=fresh_salt())[0]
    after = client.status().counters
    for name, model in zip(names, models, strict=True):
        assert np.allclose(item.scores[name].logprobs, own_logprobs(model, PROMPT, COMPLETION), atol=1e-4, rtol=0), name
    assert len({tuple(np.round(item.scores[name].logprobs, 2)) for name in [*names, "policy"]}) == 4
    num_forwards, num_steps = (after[key] - before[key] for key in ("head_forwards", "steps"))
    assert num_forwards <= num_steps


def test_samples_of_all_adapters_in_one_call(client: Client, names: list[str], models: list[PeftModel]) -> None:
    samples = client.generate(
        [PROMPT], arms=[Arm(name, n=2) for name in names], seed=3, max_new_tokens=24, ignore_eos=True, score=["reference"]
    )
    assert len(samples) == 2 * len(names)
    for sample in samples:
        model = models[names.index(sample.head)]
        assert np.allclose(sample.logprobs, own_logprobs(model, sample.prompt_token_ids, sample.token_ids), atol=1e-4, rtol=0)


def test_they_are_listed_with_base_rank_and_metrics(client: Client, server: LocalServer, names: list[str]) -> None:
    head = client.head(names[2])
    assert head.manifest.lora is not None
    assert (head.manifest.base, head.manifest.lora.rank, head.metrics) == ("policy@1", 4, {"loss": 2.5})
    assert head.manifest.lora.rank_pattern == {f"model.layers.{layer}.mlp.down_proj": 2 for layer in (2, 3)}
    assert head.digest != head.file_sha256
    rows = {ref: row for row in client.status().resident_heads for ref in row.references}
    base, adapters = rows["policy@1"], [rows[f"{name}@1"] for name in names]
    assert sum(row.num_bytes for row in adapters) < base.num_bytes
    assert all(row.num_bytes < 2 * client.head(name).num_bytes for row, name in zip(adapters, names, strict=True))
    assert "LoRA 2 on policy@1" in polyhead(server, "heads", "list")


def test_a_base_cannot_go_before_its_adapters(client: Client, names: list[str]) -> None:
    base = client.copy_head("policy@1", "shared")
    folder_head = client.pull_head(names[0])
    lora = {"r": 4, "lora_alpha": 8}
    version = client.push_head("temporary", folder_head, lora=lora, base=f"shared@{base}")
    with pytest.raises(FailedPrecondition, match=f"temporary@{version}"):
        client.delete_head(f"shared@{base}")
    client.delete_head(f"temporary@{version}")
    client.delete_head(f"shared@{base}")


def test_pull_push_and_copy_give_the_same_head(client: Client, names: list[str], folder: Path) -> None:
    client.pull_head(names[1], folder / "pulled")
    again = client.push("again", folder / "pulled").head
    assert again.digest == client.head(names[1]).digest
    copied = client.copy_head(names[1], "copied")
    assert client.head(f"copied@{copied}").digest == again.digest


async def test_rounds_of_updates_and_a_rollback(server: LocalServer, models: list[PeftModel], folder: Path) -> None:
    """A trainer that pushes one adapter after another under one name, from the asynchronous client."""
    async with AsyncClient(server.address, timeout=120) as client:
        plain = (await client.score([(PROMPT, COMPLETION)], heads=["policy"]))[0].scores["policy"].logprobs
        for index in (0, 1):
            done = await client.update({"policy": folder / str(index)}, options={"policy": {"metrics": {"round": index}}})
            head = await client.head("policy")
            assert (head.version, head.manifest.base, head.metrics) == (done.heads["policy"], "policy@1", {"round": float(index)})
            found = (await client.score([(PROMPT, COMPLETION)], heads=["policy"]))[0].scores["policy"].logprobs
            assert np.allclose(found, own_logprobs(models[index], PROMPT, COMPLETION), atol=1e-4, rtol=0)
        await client.rollback()
        found = (await client.score([(PROMPT, COMPLETION)], heads=["policy"]))[0].scores["policy"].logprobs
        assert np.allclose(found, own_logprobs(models[0], PROMPT, COMPLETION), atol=1e-4, rtol=0)
        await client.rollback()
        found = (await client.score([(PROMPT, COMPLETION)], heads=["policy"]))[0].scores["policy"].logprobs
        assert np.allclose(found, plain, atol=1e-5, rtol=0)


def test_a_command_pushes_and_merges(
    server: LocalServer, client: Client, models: list[PeftModel], names: list[str], folder: Path, tiny_model: Path
) -> None:
    polyhead(server, "heads", "push", "by-hand", str(folder / "2"), "--base", "policy@1", "--metric", "loss=0.125")
    assert client.heads("by-hand")[0].metrics == {"loss": 0.125}
    polyhead(server, "heads", "pull", "by-hand@1", str(folder / "adapter"))
    polyhead(server, "heads", "pull", "policy@1", str(folder / "base"))
    polyhead(server, "merge", str(tiny_model), str(folder / "adapter"), str(folder / "whole"), "--base", str(folder / "base"))
    whole = AutoModelForCausalLM.from_pretrained(folder / "whole", dtype=torch.float32).eval()
    found, wanted = (own_logprobs(model, PROMPT, COMPLETION) for model in (whole, models[2]))
    assert np.allclose(found, wanted, atol=1e-4, rtol=0)


def test_the_trunk_is_out_of_reach(client: Client, tiny_model: Path, folder: Path) -> None:
    save_adapter(tiny_model, folder / "everywhere", 0, (0, 1, 2, 3), r=2, lora_alpha=2, target_modules=["q_proj"])
    with pytest.raises(FailedPrecondition, match=r"touches the trunk.*layers\.0(.|\n)*range\(2, 4\)"):
        client.push_head("policy", folder / "everywhere")


def test_a_restart_serves_the_same_adapter(tiny_model: Path, models: list[PeftModel], folder: Path, tmp_path: Path) -> None:
    """kill -9 in between: `serving` does that to every server."""
    with serving(tiny_model, tmp_path / "store") as first, Client(first.address, timeout=120) as client:
        client.update({"policy": folder / "2"})
        digest = client.head("policy").digest
    with serving(tiny_model, tmp_path / "store") as second, Client(second.address, timeout=120) as client:
        assert client.head("policy").digest == digest
        found = client.score([(PROMPT, COMPLETION)], heads=["policy"])[0].scores["policy"].logprobs
        assert np.allclose(found, own_logprobs(models[2], PROMPT, COMPLETION), atol=1e-4, rtol=0)
