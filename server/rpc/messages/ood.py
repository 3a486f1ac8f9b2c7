"""Out-of-distribution fits and scores, and pooling, between protobuf and dataclasses."""

from __future__ import annotations

import math

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.manifest import check_name
from polyhead.heads.store.records import check_request_id
from polyhead.server.engine.work.pooling import Pooling, PromptPooling
from polyhead.server.engine.work.request import Sample
from polyhead.server.ood.fits import TrunkLayers
from polyhead.server.ood.scores import DEFAULT_SHRINKAGE, check_count, check_shrinkage
from polyhead.server.ood.store import OodFit
from polyhead.server.rpc.messages import enums
from polyhead.server.rpc.tag import tag_of
from polyhead.v1 import trunk_pb2, types_pb2

MAX_PROMPTS = 100_000  # of one fit


def fit_record(header: trunk_pb2.FitOodHeader, layers: TrunkLayers, d_model: int, request_digest: str = "") -> OodFit:
    """The record of a fit as far as its header says it, every default filled in."""
    shrinkage = check_shrinkage(header.shrinkage if header.HasField("shrinkage") else DEFAULT_SHRINKAGE, "header.shrinkage")
    return OodFit(
        name=check_name(header.name, "header.name"),
        version=0,
        trunk_id=layers.trunk_id,
        precision=layers.precision,
        pooling=PromptPooling(
            layers.resolve(header.layer, default=layers.kept[0], field="header.layer"),
            enums.POOLINGS.member_or(header.pooling, "header.pooling", Pooling.MEAN),
        ),
        num_prompts=_declared_prompts(header.num_prompts, d_model, shrinkage),
        shrinkage=shrinkage,
        mean_score=0.0,
        std_score=0.0,
        created_at=0.0,
        request_id=check_request_id(header.request_id),
        request_digest=request_digest,
    )


def _declared_prompts(count: int, d_model: int, shrinkage: float) -> int:
    """Required: without it a caller that went away looks like one that is done."""
    field = "header.num_prompts"
    if not count:
        raise InvalidArgument("the number of prompts must be declared", field=field)
    if count > MAX_PROMPTS:
        raise InvalidArgument(f"a fit has at most {MAX_PROMPTS} prompts: {count}", field=field)
    check_count(count, d_model, shrinkage, field)
    return count


def fit_message(fit: OodFit) -> trunk_pb2.OodFit:
    """A fit's record."""
    return trunk_pb2.OodFit(
        name=fit.name,
        version=fit.version,
        trunk_id=fit.trunk_id,
        precision=fit.precision,
        layer=fit.pooling.layer,
        pooling=enums.POOLINGS.number(fit.pooling.method),
        num_prompts=fit.num_prompts,
        shrinkage=fit.shrinkage,
        created_at=fit.created_at,
        mean_score=fit.mean_score,
        std_score=fit.std_score,
    )


def ood_score(sample: Sample) -> types_pb2.OodScore | None:
    """None if it was not asked for, or is not finite: `ood_error` then says so."""
    fit, score = tag_of(sample.request).ood, tag_of(sample.request).ood_scores.get(sample.prompt_index)
    if fit is None or score is None or not math.isfinite(score):
        return None
    return types_pb2.OodScore(fit=fit.reference, layer=fit.pooling.layer, score=score)


def ood_error(sample: Sample) -> str:
    """Why a score that was made is not returned; empty if it is."""
    fit, score = tag_of(sample.request).ood, tag_of(sample.request).ood_scores.get(sample.prompt_index)
    if fit is None or score is None or math.isfinite(score):
        return ""
    return f"the out-of-distribution score of {fit.reference} is not finite"
