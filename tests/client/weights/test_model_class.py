"""Live modules are pushed as they are: their tensors, their class, an adapter's config. The client imports neither torch nor PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyhead.client import Client, errors
from polyhead.client.weights.model_class import ModelClass
from polyhead.v1 import heads_pb2
from tests.client.fake_messages import HEAD_SHAPES
from tests.client.fake_server import FakeServer

LAYER, NORM = HEAD_SHAPES
MODULE = LAYER.removesuffix(".weight")
HEAD = {name: torch.ones(shape) for name, shape in HEAD_SHAPES.items()}
SCORE = {"score.weight": torch.ones(1, HEAD_SHAPES[NORM][0])}


class Config:
    def __init__(self, pad_token_id: int | None) -> None:
        self.pad_token_id = pad_token_id


class LlamaForSequenceClassification(torch.nn.Module):
    """As transformers' of that name, as far as a push looks at it."""

    def __init__(self, tensors: dict[str, torch.Tensor], pad_token_id: int | None = None) -> None:
        super().__init__()
        self.tensors = tensors
        self.config = Config(pad_token_id)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return self.tensors


class LoraConfig:
    def to_dict(self) -> dict[str, Any]:
        return {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": {MODULE.rsplit(".", 1)[1]}}


class PeftModel(torch.nn.Module):
    """A model with two adapters: the base's weights are among its tensors, too."""

    def __init__(self, *active: str) -> None:
        super().__init__()
        self.peft_config = {"default": LoraConfig(), "other": LoraConfig()}
        self.active_adapters = list(active)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        prefix, shapes = f"base_model.model.{MODULE}", {"A": (2, HEAD_SHAPES[LAYER][1]), "B": (HEAD_SHAPES[LAYER][0], 2)}
        names = {f"{prefix}.lora_{letter}.{name}.weight": torch.ones(shapes[letter]) for letter in "AB" for name in self.peft_config}
        return {**names, f"{prefix}.base_layer.weight": HEAD[LAYER], f"base_model.model.{NORM}": HEAD[NORM]}


class Wrapper(torch.nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_module_is_pushed_and_read_where_its_class_reads(client: Client, server: FakeServer, is_wrapped: bool) -> None:
    """It was "object is not iterable"."""
    module: Any = LlamaForSequenceClassification({**HEAD, **SCORE}, pad_token_id=2)
    report = client.push("rm", Wrapper(module) if is_wrapped else module, kind="preference")
    assert report.used == sorted([*HEAD, "score.weight"])
    manifest = server.requests["PushHead"][0].manifest
    assert (manifest.read, manifest.pad_token_id) == (heads_pb2.READ_POSITION_LAST, 2)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_of_a_peft_model_the_active_adapter_is_pushed(client: Client, server: FakeServer, is_wrapped: bool) -> None:
    model: Any = PeftModel("other")
    report = client.push("policy", Wrapper(model) if is_wrapped else model)
    assert report.used == [f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"]
    assert server.requests["PushHead"][0].manifest.lora.rank == 2


def test_two_active_adapters_are_refused(client: Client) -> None:
    with pytest.raises(errors.InvalidArgument, match="several active: default, other"):
        client.push("policy", PeftModel("default", "other"))


def test_parameters_without_names_are_told_from_named_ones(client: Client) -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"model\.named_parameters"):
        client.push("policy", module.parameters())  # type: ignore[arg-type]


def test_a_report_is_one_short_line(client: Client) -> None:
    text = repr(client.push("rm", LlamaForSequenceClassification({**HEAD, **SCORE}, pad_token_id=2), kind="preference"))
    assert text.startswith("<PushReport rm@1: 3 tensors sent")
    assert len(text) < 200
    assert len(repr(client.trunk())) < 600


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaModel", ""])
def test_other_classes_say_nothing_about_reading(name: str) -> None:
    assert ModelClass(name, 2).reading(10) == {}
