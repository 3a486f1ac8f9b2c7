"""What a trainer of two heads takes, beside what trainers of whole models would hold."""

from __future__ import annotations

import resource

import numpy as np

from polyhead.client import Client
from polyhead.heads.training.rl.learner import Learner

MIB = 1 << 20


def memory(learner: Learner, client: Client) -> dict[str, float]:
    """MiB: what the trainer's tensors take, what this process took at most, and what trainers of whole models would hold in float32.

    Those hold a policy and a value model with gradients and both moments, and a reference: (4 + 4 + 1) copies of all parameters.
    """
    own = sum(each.numel() * each.element_size() for each in learner.tensors().values())
    gradients = sum(each.numel() * 4 for part in (learner.policy_optimiser, learner.value_optimiser) for each in part.parameters.values())
    trunk = client.trunk()
    matrix = trunk.vocab_size * trunk.d_model
    num_own = trunk.num_layers - trunk.split_layer
    layers = sum(int(np.prod(shape)) for shape in trunk.head_tensors.values()) / num_own  # of one, a share of the norm included
    embedding, whole = 4 * matrix if trunk.tied else 0, 4 * (layers * trunk.num_layers + matrix * (1 if trunk.tied else 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"trainer": (own + gradients + embedding) / MIB, "peak": peak, "whole_models": 9 * whole / MIB}
