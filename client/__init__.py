"""The Python client: a light install (grpcio, protobuf, googleapis-common-protos, numpy, safetensors).

from polyhead.client import Client

with Client("127.0.0.1:50051") as c:
    samples = c.generate(["Why is the sky blue?"], n=4, score=["reference", "value"])
"""

from polyhead.client import errors
from polyhead.client.aio import AsyncClient
from polyhead.client.client import Client
from polyhead.client.errors import PolyheadError
from polyhead.client.fleet.fleet import AsyncFleet, Fleet
from polyhead.client.results.batch import to_batch
from polyhead.client.results.blind import BlindCandidates, Candidate, Evidence, blind
from polyhead.client.results.plain import to_plain
from polyhead.client.results.records import (
    Calibration,
    Configuration,
    Generation,
    HeadManifest,
    HeadVersion,
    LoraAdapter,
    OodFit,
    PushReport,
    RankMemory,
    Replica,
    ResidentHead,
    ResidentName,
    RuleQuestions,
    SourceTensor,
    Status,
    TrunkInfo,
)
from polyhead.client.results.results import (
    FinishReason,
    HeadKind,
    HeadScore,
    OodScore,
    Piece,
    PolicyScore,
    PreferenceScore,
    RankedSample,
    Reward,
    RuleScores,
    Sample,
    Sampling,
    ScoredItem,
    Served,
    Span,
    ValueScore,
    WorkDone,
)
from polyhead.client.weights.tensors import RawTensor
from polyhead.client.wire.options import Arm, Rule
from polyhead.client.wire.prompts import Continuation, continue_from

__all__ = [
    "Arm",
    "AsyncClient",
    "AsyncFleet",
    "BlindCandidates",
    "Calibration",
    "Candidate",
    "Client",
    "Configuration",
    "Continuation",
    "Evidence",
    "FinishReason",
    "Fleet",
    "Generation",
    "HeadKind",
    "HeadManifest",
    "HeadScore",
    "HeadVersion",
    "LoraAdapter",
    "OodFit",
    "OodScore",
    "Piece",
    "PolicyScore",
    "PolyheadError",
    "PreferenceScore",
    "PushReport",
    "RankMemory",
    "RankedSample",
    "RawTensor",
    "Replica",
    "ResidentHead",
    "ResidentName",
    "Reward",
    "Rule",
    "RuleQuestions",
    "RuleScores",
    "Sample",
    "Sampling",
    "ScoredItem",
    "Served",
    "SourceTensor",
    "Span",
    "Status",
    "TrunkInfo",
    "ValueScore",
    "WorkDone",
    "blind",
    "continue_from",
    "errors",
    "to_batch",
    "to_plain",
]
