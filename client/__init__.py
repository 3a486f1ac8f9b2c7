"""The Python client: a light install (grpcio, protobuf, googleapis-common-protos, numpy, safetensors).

from polyhead.client import Client

with Client("127.0.0.1:50051") as c:
    samples = c.generate(["Why is the sky blue?"], n=4, score=["reference", "value"])
"""

from polyhead.client import errors
from polyhead.client.aio import AsyncClient
from polyhead.client.batch import to_batch
from polyhead.client.blind import BlindCandidates, Candidate, Evidence, blind
from polyhead.client.client import Client
from polyhead.client.errors import PolyheadError
from polyhead.client.options import Arm, Rule
from polyhead.client.prompts import continue_from
from polyhead.client.records import (
    Generation,
    HeadManifest,
    HeadVersion,
    PushReport,
    ResidentHead,
    SourceTensor,
    Status,
    TrunkInfo,
)
from polyhead.client.results import (
    FinishReason,
    HeadKind,
    HeadScore,
    Piece,
    PolicyScore,
    PreferenceScore,
    RuleScores,
    Sample,
    Sampling,
    ScoredItem,
    Served,
    Span,
    ValueScore,
)
from polyhead.client.tensors import RawTensor

__all__ = [
    "Arm",
    "AsyncClient",
    "BlindCandidates",
    "Candidate",
    "Client",
    "Evidence",
    "FinishReason",
    "Generation",
    "HeadKind",
    "HeadManifest",
    "HeadScore",
    "HeadVersion",
    "Piece",
    "PolicyScore",
    "PolyheadError",
    "PreferenceScore",
    "PushReport",
    "RawTensor",
    "ResidentHead",
    "Rule",
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
    "blind",
    "continue_from",
    "errors",
    "to_batch",
]
