"""The five heads that are made of the model itself at the first start. Knows no engine and nothing of what is active."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyhead.heads.format.kinds import FIRST_HEADS, SCORE_NAME, HeadKind, OutputKind, model_output
from polyhead.heads.store.store import HeadStore
from polyhead.server.versions.head_loader import to_file
from polyhead.server.versions.manifests import ServedTrunk


def add_first_versions(store: HeadStore, trunk: ServedTrunk, policy: Mapping[str, Tensor]) -> dict[str, int]:
    """Add one version of each name; `policy` holds the model's own upper layers and, if it is not tied, its output.

    policy, reference and rule share that file. preference and value share another: the same layers under a score of zeros,
    untrained. Killed half-way, it takes up where it was: every version has a request id.
    """
    spec = trunk.spec
    own_output = model_output(HeadKind.POLICY, tied=spec.tied)
    layers = {name: policy[name] for name in spec.head_names}
    score = torch.zeros((1, spec.d_model), dtype=next(iter(layers.values())).dtype)
    files = {own_output: to_file(policy), OutputKind.SCORE: to_file({**layers, SCORE_NAME: score})}
    versions = {}
    for name, kind in FIRST_HEADS.items():
        output = model_output(kind, tied=spec.tied)
        manifest = trunk.new_manifest(kind, output, untrained=not kind.has_logits)
        digest = store.put_blob(files[output])
        versions[name] = store.add_version(name, digest, manifest, request_id=f"bootstrap-{name}").version
    return versions
