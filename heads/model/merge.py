"""Puts a trunk and a head together again as a folder that transformers loads, with equal outputs.

A head with a vocabulary output becomes the family's ForCausalLM; a scalar one its ForSequenceClassification with one label.
What a manifest says beyond the weights (bias, read position, answer tokens) has no place in such a folder and stays behind,
but for a preference head's padding, which decides where the class reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from polyhead.heads.format.kinds import SCORE_NAME, OutputKind
from polyhead.heads.format.lora import check_adapter
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model.adapted import Adapter, merged
from polyhead.heads.model.checkpoint import Checkpoint, Piece, write_weights
from polyhead.heads.model.family import check_schema
from polyhead.heads.model.skeleton import build_skeleton
from polyhead.heads.model.spec import ModelSpec, describe, trunk_id
from polyhead.heads.model.split import TrunkFacts, copy_companions, fresh_folder, read_head_folder

__all__ = ["merge"]


def merge(
    trunk_folder: str | Path, head_folder: str | Path, out_folder: str | Path, base_folder: str | Path | None = None
) -> None:
    """Write trunk + head to `out_folder`. `trunk_folder` is what `split` wrote, or the whole source model.

    `base_folder` is the head that a LoRA head is built on: the adapter is added to its weights.
    Raises FailedPrecondition if the head belongs to another trunk or the family has no class for it, DataLoss if the trunk's
    tensors are not those that were split.
    """
    manifest, tensors = read_head_folder(head_folder)
    checkpoint = Checkpoint.open(trunk_folder)
    spec = describe(checkpoint, manifest.split_layer)
    found = _trunk_id_of(checkpoint, spec)
    if found != manifest.trunk_id:
        raise FailedPrecondition(
            f"the head belongs to another trunk: {manifest.trunk_id[:12]}, this one is {found[:12]}\n"
            "hint: merge it with the trunk it was trained on"
        )
    if manifest.lora is not None or base_folder is not None:
        tensors = _merge_adapter(spec, manifest, tensors, base_folder)
    check_schema(spec, tensors, manifest.output)
    pieces = _trunk_pieces(checkpoint, spec) | {name: Piece.of(tensor) for name, tensor in tensors.items()}
    config = _merged_config(checkpoint, spec, manifest, pieces)
    with fresh_folder(out_folder) as out:
        copy_companions(checkpoint.folder, out)
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_weights(out / "model.safetensors", pieces)


def _merge_adapter(
    spec: ModelSpec, manifest: HeadManifest, tensors: Mapping[str, torch.Tensor], base_folder: str | Path | None
) -> dict[str, torch.Tensor]:
    """The tensors of the plain head that computes what base and adapter do together."""
    if manifest.lora is None:
        raise InvalidArgument("a base was given, but the head is no LoRA head: it holds all of its weights", field="base")
    if base_folder is None:
        hint = f"polyhead heads pull {manifest.base} BASE, then merge with --base BASE"
        raise FailedPrecondition(f"the head is a LoRA head, built on {manifest.base}: merging needs both\nhint: {hint}", field="base")
    base, weights = read_head_folder(base_folder)
    if base.lora is not None or (base.trunk_id, base.output) != (manifest.trunk_id, manifest.output):
        raise FailedPrecondition("the base is no plain head of the same trunk and output", field="base")
    check_schema(spec, weights, base.output)
    check_adapter({name: tuple(tensor.shape) for name, tensor in tensors.items()}, manifest.lora, spec.head_linears, spec.trunk_names)
    return merged(weights, Adapter.of(tensors, manifest.lora, torch.float32, "cpu"))


def _trunk_id_of(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """From trunk.json after checking every tensor against it; computed where the folder is a whole model."""
    try:
        facts = TrunkFacts.read(checkpoint.folder)
    except NotFound:
        return trunk_id(checkpoint, spec)
    if facts.split_layer != spec.split_layer:
        raise FailedPrecondition(f"the head starts at layer {spec.split_layer}, the trunk ends at layer {facts.split_layer}")
    for name, expected in facts.tensors.items():
        if checkpoint.sha256(name) != expected:
            raise DataLoss(f"a tensor of the trunk is not the one that was split: {name!r}\nhint: split the model again")
    return facts.trunk_id


def _trunk_pieces(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Piece]:
    """The trunk's source tensors byte for byte, under names that from_pretrained finds."""
    pieces: dict[str, Piece] = {}
    for name in spec.trunk_names:
        sources = spec.sources_of(name)
        for source in sources:
            is_prefixed = source.startswith(f"{spec.base}.")
            target = name if len(sources) == 1 else source if is_prefixed else f"{spec.base}.{source}"
            pieces[target] = checkpoint.piece(source)
    return pieces


def _merged_config(
    checkpoint: Checkpoint, spec: ModelSpec, manifest: HeadManifest, pieces: Mapping[str, Piece]
) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    for name in ("torch_dtype", "transformers_weights"):
        config.pop(name, None)
    config["architectures"] = [_architecture(spec, manifest.output)]
    config["dtype"] = str(_widest_dtype(pieces)).removeprefix("torch.")
    config["tie_word_embeddings"] = manifest.output is OutputKind.TIED
    if manifest.output is OutputKind.SCORE:
        config["tie_word_embeddings"] = spec.tied
        config.update(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
        if manifest.pad_token_id >= 0:
            config["pad_token_id"] = manifest.pad_token_id  # the class reads the last token that is not this one
    return config


def _widest_dtype(pieces: Mapping[str, Piece]) -> torch.dtype:
    """So that loading with dtype "auto" rounds nothing."""
    dtypes = {piece.dtype for piece in pieces.values()}
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    return widest if len({dtype for dtype in dtypes if dtype.itemsize == widest.itemsize}) == 1 else torch.float32


def _architecture(spec: ModelSpec, output: OutputKind) -> str:
    if output is not OutputKind.SCORE:
        return str(MODEL_FOR_CAUSAL_LM_MAPPING[type(spec.config)].__name__)
    if type(spec.config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(spec.config)]
        if SCORE_NAME in build_skeleton(spec.config, kind).state_dict():
            return str(kind.__name__)
    raise FailedPrecondition(
        f"transformers has no sequence classifier with a score for this family: model_type {spec.config.model_type!r}"
    )
