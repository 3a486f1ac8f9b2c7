"""An arm's two heads on the server: where they start, how they are pushed and activated as one change, and how an earlier pair comes back.

Several arms share one server under names of their own: "policy-mix" and "value-mix" for the arm "mix".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from polyhead.client import Client, HeadKind
from polyhead.client.errors import NotFound
from polyhead.client.results.records import HeadVersion
from polyhead.client.wire.options import KindName, PushOptions
from polyhead.heads.format.tensorfile import TensorData, canonical_chunks
from polyhead.heads.model.checkpoint import as_bytes
from polyhead.heads.model.family import HeadModule
from polyhead.heads.training.remote import head_to_start_from, weights_of
from polyhead.heads.training.rl.learner import Learner


@dataclass(frozen=True)
class Pair:
    """The versions of one activated pair."""

    policy: int
    value: int


class OtherTrainer(RuntimeError):
    """Somebody else activated a version of the arm's heads."""


@dataclass(frozen=True)
class Arm:
    """The names that one run trains under. An empty name means the server's own "policy" and "value"."""

    client: Client
    name: str = ""

    @property
    def policy(self) -> str:
        return f"policy-{self.name}" if self.name else "policy"

    @property
    def value(self) -> str:
        return f"value-{self.name}" if self.name else "value"

    def start(self, policy_from: str, value_from: str) -> Pair:
        """Activate copies of these heads under the arm's names; a head that bears the name already stays as it is."""
        policy = head_to_start_from(self.client, policy_from, HeadKind.POLICY)
        value = head_to_start_from(self.client, value_from, HeadKind.VALUE)
        versions = {self.policy: self._started(policy, self.policy, "policy"), self.value: self._started(value, self.value, "value")}
        self._activate(versions, "rl: start")
        return Pair(versions[self.policy], versions[self.value])

    def push(self, policy: HeadModule, value: HeadModule, metrics: Mapping[str, float], note: str) -> Pair:
        """New versions of both, then one activation: whoever asks meanwhile is served by the old pair or by the new one."""
        options: dict[str, PushOptions] = {
            self.policy: {"kind": "policy", "metrics": metrics},
            self.value: {"kind": "value", "metrics": metrics},
        }
        weights = {self.policy: weights_of(policy), self.value: weights_of(value)}
        done = self.client.update(weights, options=options, note=note)
        return Pair(done.heads[self.policy], done.heads[self.value])

    def restore(self, learner: Learner, note: str) -> Pair:
        """Make these weights active: versions that hold them already are found by their digest and cost no upload."""
        units: PushOptions = {"kind": "value", "bias": learner.value_bias, "scale": learner.value_scale}
        versions = {self.policy: self._version_of(self.policy, weights_of(learner.policy), {"kind": "policy"})}
        versions[self.value] = self._version_of(self.value, weights_of(learner.value), units)
        self._activate(versions, note)
        return Pair(versions[self.policy], versions[self.value])

    def check(self, pair: Pair) -> None:
        """Raise OtherTrainer if the active versions are not the ones that this run activated."""
        for name, version in ((self.policy, pair.policy), (self.value, pair.value)):
            if (found := self.client.head(name).version) != version:
                hint = "hint: give each run a --name of its own; the same command with --checkpoints makes this run's heads active again"
                raise OtherTrainer(f"somebody else activated {name}@{found}, this run {name}@{version}\n{hint}")

    def _activate(self, versions: Mapping[str, int], note: str) -> None:
        if any(self._active(name) != version for name, version in versions.items()):
            self.client.activate(dict(versions), note=note)

    def _active(self, name: str) -> int:
        """0: none."""
        try:
            return self.client.head(name).version
        except NotFound:
            return 0

    def _started(self, head: HeadVersion, name: str, kind: KindName) -> int:
        return head.version if head.name == name else self.client.copy_head(head.ref, name, kind=kind)

    def _version_of(self, name: str, weights: Mapping[str, Tensor], options: PushOptions) -> int:
        digest = _digest(weights)
        found = next((head.version for head in self.client.heads(name) if head.digest.removeprefix("sha256:") == digest), 0)
        return found or self.client.push_head(name, weights, **options)


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Of the file that a push of these float32 tensors makes."""
    data = {name: TensorData("F32", tuple(tensor.shape), as_bytes(tensor.cpu().contiguous())) for name, tensor in weights.items()}
    digest = hashlib.sha256()
    for chunk in canonical_chunks(data):
        digest.update(chunk)
    return digest.hexdigest()
