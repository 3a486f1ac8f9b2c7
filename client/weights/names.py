"""From the names that trainers use to the names that a head file uses. Knows no tensors."""

from __future__ import annotations

from polyhead.client.results.records import TrunkInfo
from polyhead.heads.format.kinds import SCORE_NAME

__all__ = ["LM_HEAD", "SCORE", "SCORE_BIAS", "TensorNames"]

LM_HEAD = "lm_head.weight"
SCORE = SCORE_NAME
SCORE_BIAS = "score.bias"

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_TRL_PREFIX = "pretrained_model."
_OUTPUTS = {
    "v_head.summary.weight": SCORE,
    "value_head.weight": SCORE,
    "score.weight": SCORE,
    "v_head.summary.bias": SCORE_BIAS,
    "value_head.bias": SCORE_BIAS,
    "score.bias": SCORE_BIAS,
    "lm_head.weight": LM_HEAD,
    "embed_out.weight": LM_HEAD,
}


class TensorNames:
    """The names of one trunk and its heads."""

    def __init__(self, trunk: TrunkInfo) -> None:
        self._known = trunk.head_tensors.keys() | trunk.tensors.keys()
        self._prefix = _base_prefix(trunk)

    def standard(self, given: str) -> str:
        """The checkpoint's name for a trainer's name; an unknown one comes back without wrappers."""
        name = _unwrapped(given)
        if name in _OUTPUTS:
            return _OUTPUTS[name]
        bare = name.removeprefix("model.")
        candidates = (name, self._prefix + name, bare, self._prefix + bare)
        return next((candidate for candidate in candidates if candidate in self._known), name)

    @staticmethod
    def is_score(given: str) -> bool:
        """Whether this is a scalar output's weight, under any of its names."""
        return _OUTPUTS.get(_unwrapped(given)) == SCORE


def _unwrapped(given: str) -> str:
    name = ".".join(part for part in given.split(".") if part not in _WRAPPERS)
    return name.removeprefix(_TRL_PREFIX)


def _base_prefix(trunk: TrunkInfo) -> str:
    """What stands before "layers." in this family: "model." or "gpt_neox."."""
    for name in trunk.head_tensors:
        before, found, _ = name.partition("layers.")
        if found:
            return before
    return ""
