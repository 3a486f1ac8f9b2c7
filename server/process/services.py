"""What a loaded server consists of: one object, handed whole to servicers and to the parts that supervise the server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from polyhead.heads.format.kinds import HeadKind, model_output
from polyhead.heads.format.precision import Precision
from polyhead.heads.model import embedded
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import TrunkModule
from polyhead.heads.model.spec import ModelSpec
from polyhead.heads.store.store import HeadStore
from polyhead.server.config import ServeConfig
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention
from polyhead.server.metrics.metrics import Metrics
from polyhead.server.ood.fits import OodFits
from polyhead.server.process.workers import Workers
from polyhead.server.rewards.library import Library
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rewards.rules import RuleBook
from polyhead.server.text.tokenizer import Tokenizer
from polyhead.server.text.transcripts import TranscriptBook
from polyhead.server.versions.following import FollowState
from polyhead.server.versions.publisher import Publisher
from polyhead.server.versions.registry import Registry


@dataclass(frozen=True, slots=True)
class Services:
    """Made by startup.py."""

    config: ServeConfig
    spec: ModelSpec
    checkpoint: Checkpoint
    trunk: TrunkModule
    trunk_id: str
    eos_ids: frozenset[int]
    max_context: int
    tokenizer: Tokenizer
    rules: RuleBook
    formats: TranscriptBook
    recipes: RecipeBook
    library: Library  # the three above, and what was added to them
    engine: Engine
    store: HeadStore
    registry: Registry
    publisher: Publisher
    metrics: Metrics
    workers: Workers
    ood: OodFits
    following: FollowState | None = None  # None: nobody; a primary
    started_at: float = field(default_factory=time.monotonic)

    @property
    def model_name(self) -> str:
        return Path(self.config.model).name if self.config.model else embedded.NAME

    @property
    def precision(self) -> Precision:
        return self.config.trunk_dtype

    @property
    def output_precision(self) -> Precision:
        """How output projections to the vocabulary are held."""
        return self.config.output_dtype or (self.config.trunk_dtype if self.spec.tied else self.config.head_dtype)

    @property
    def attention(self) -> str:
        """What computes attention, of trunk and heads alike but for their dtypes."""
        kernel = self.engine.trunk.attention
        failed = sorted(kernel.failed) if isinstance(kernel, VarlenAttention) else []
        return f"{kernel.name}, but torch for {' and '.join(failed)}" if failed else kernel.name

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes that keys, values and states may take on each device, the trunk's first."""
        config, trunk, heads = self.config, self.engine.trunk.cache, self.engine.heads.cache
        found = {config.device: sum(tensor.nbytes for tensor in trunk.tensors if tensor is not trunk.states)}
        found[config.heads_on] = found.get(config.heads_on, 0) + trunk.states.nbytes + sum(layer.nbytes for layer in heads.layers)
        return found

    @property
    def trunk_bytes(self) -> int:
        """Of its weights as served."""
        return self.engine.trunk.num_bytes

    @property
    def model_bytes(self) -> int:
        """What one unsplit model takes: the trunk and one policy head."""
        return self.trunk_bytes + self.registry.num_head_bytes(model_output(HeadKind.POLICY, tied=self.spec.tied))
