"""Which out-of-distribution fits can be used on the served trunk, and those in memory. Knows no request and no wire."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.format.precision import Precision
from polyhead.server.engine.work.pooling import PromptPooling
from polyhead.server.ood.scores import OodModel
from polyhead.server.ood.store import OodFit, OodStore

MAX_LOADED = 4  # fits in memory, 8 * d_model^2 bytes each


@dataclass(frozen=True, slots=True)
class TrunkLayers:
    """What a fit is bound to: the trunk as it is served, and the layers whose states are kept."""

    trunk_id: str
    precision: Precision
    split_layer: int
    tap_layer: int  # 0: none

    @property
    def kept(self) -> tuple[int, ...]:
        return (self.tap_layer, self.split_layer) if self.tap_layer else (self.split_layer,)

    def resolve(self, layer: int, default: int, field: str) -> int:
        """The layer's number; 0 stands for `default`. InvalidArgument, naming those that there are."""
        layer = layer or default
        if layer not in self.kept:
            known = " and ".join(map(str, self.kept))
            raise InvalidArgument(
                f"the states at layer {layer} are not kept: the server has those at {known}\nhint: choose with --tap-layer at its start",
                field=field,
            )
        return layer


@dataclass(frozen=True, slots=True)
class LoadedFit:
    """A fit with its numbers: what a request carries (`PromptScorer` in rpc/tag.py)."""

    fit: OodFit
    model: OodModel

    @property
    def reference(self) -> str:
        return self.fit.reference

    @property
    def pooling(self) -> PromptPooling:
        return self.fit.pooling

    def score(self, row: np.ndarray) -> float:
        return self.model.score(row)


class OodFits:
    """The fits of one store, for one trunk as it is served. Methods may block on the disk. Thread-safe."""

    def __init__(self, store: OodStore, layers: TrunkLayers) -> None:
        self.store = store
        self.layers = layers
        self._loaded: OrderedDict[str, LoadedFit] = OrderedDict()  # by reference, the longest unused first
        self._lock = threading.Lock()

    def find(self, reference: str, field: str) -> LoadedFit:
        """"helpful" (the newest version) or "helpful@2". NotFound; FailedPrecondition if it was made on another trunk, at another
        precision, or at a layer that is not kept: an older version never stands in for it."""
        fit = self.store.get(*parse_reference(reference, field), field)
        self._check(fit, field)
        with self._lock:
            loaded = self._loaded.get(fit.reference)
            if loaded is None or loaded.fit != fit:  # a follower takes its primary's in place of one of its own
                loaded = LoadedFit(fit, self.store.load(fit))
            self._loaded[fit.reference] = loaded
            self._loaded.move_to_end(fit.reference)
            while len(self._loaded) > MAX_LOADED:
                self._loaded.popitem(last=False)
        return loaded

    def _check(self, fit: OodFit, field: str) -> None:
        served = self.layers
        problem = ""
        if fit.trunk_id != served.trunk_id:
            problem = f"was made on another trunk: {fit.trunk_id[:12]}... is not {served.trunk_id[:12]}..."
        elif fit.precision != served.precision:
            problem = f"was made at precision {fit.precision}, the trunk is served at {served.precision}\nhint: fit it again"
        elif fit.pooling.layer not in served.kept:
            known = " and ".join(map(str, served.kept))
            hint = f"start it with --tap-layer {fit.pooling.layer}, or fit again"
            problem = f"reads layer {fit.pooling.layer}, the server keeps {known}\nhint: {hint}"
        if problem:
            raise FailedPrecondition(f"the fit {fit.reference} {problem}", field=field)
