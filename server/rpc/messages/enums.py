"""Our enums beside those of the contract. A new member of either is found by its name."""

from __future__ import annotations

from polyhead.heads.format.kinds import HeadKind, OutputKind, ReadPosition, Unfinished
from polyhead.heads.format.wire_enums import WireEnum
from polyhead.server.engine.work.pooling import Pooling
from polyhead.server.engine.work.request import OnSwap, Priority
from polyhead.server.engine.work.sampling import FinishReason
from polyhead.server.rewards.configurations import ConfigurationKind
from polyhead.server.versions.consent import Require
from polyhead.v1 import heads_pb2, scoring_pb2, trunk_pb2, types_pb2

HEAD_KINDS = WireEnum(types_pb2.HeadKind, HeadKind)
OUTPUT_KINDS = WireEnum(heads_pb2.OutputKind, OutputKind)
READ_POSITIONS = WireEnum(heads_pb2.ReadPosition, ReadPosition)
UNFINISHED = WireEnum(heads_pb2.Unfinished, Unfinished)
FINISH_REASONS = WireEnum(types_pb2.FinishReason, FinishReason, unset=FinishReason.GIVEN)
ON_SWAPS = WireEnum(types_pb2.OnSwap, OnSwap)
PRIORITIES = WireEnum(types_pb2.Priority, Priority)
POOLINGS = WireEnum(trunk_pb2.Pooling, Pooling)
REQUIREMENTS = WireEnum(heads_pb2.Require, Require)
CONFIGURATION_KINDS = WireEnum(scoring_pb2.ConfigurationKind, ConfigurationKind)
