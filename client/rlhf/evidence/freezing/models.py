"""What a variant trains: a head, adapters beside a head, or a whole model that is called as a head is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model.adapted import Adapter, LowRank, build_lora_head
from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.model.spec import describe_config

ALPHA = 32  # of the adapters, with ten times the rate of full training (Schulman et al. 2025, "LoRA Without Regret")
SCORE = "score.weight"


@dataclass(frozen=True)
class Trainee:
    """A model and what of it is trained, by name."""

    model: HeadModule
    parameters: Mapping[str, nn.Parameter]

    @property
    def num_trained(self) -> int:
        """Numbers that change."""
        return sum(each.numel() for each in self.parameters.values())

    @property
    def swap_bytes(self) -> int:
        """What has to be sent to a server that is to use the trained weights."""
        return sum(each.numel() * each.element_size() for each in self.parameters.values())

    @property
    def training_bytes(self) -> int:
        """Of the model's tensors, the gradients and Adam's two moments."""
        own = {id(each): each.numel() * each.element_size() for each in [*self.model.parameters(), *self.parameters.values()]}
        return sum(own.values()) + 3 * self.swap_bytes


def whole_head(head: HeadModule) -> Trainee:
    """All of a head but a tied output."""
    return Trainee(head, trainable_parameters(head))


def adapters_beside(base: HeadModule, rank: int, seed: int) -> Trainee:
    """LoRA matrices on every linear of the head (Hu et al. 2021), A uniform as torch's linears are, B zero; and its new output."""
    base.requires_grad_(False)
    generator, parameters, pairs = torch.Generator().manual_seed(seed), dict[str, nn.Parameter](), dict[str, LowRank]()
    for module, (out_size, in_size) in sorted(base.spec.head_linears.items()):
        bound = 1 / math.sqrt(in_size)
        a = nn.Parameter(torch.empty(rank, in_size).uniform_(-bound, bound, generator=generator))
        b = nn.Parameter(torch.zeros(out_size, rank))
        pairs[module] = LowRank(a, b, ALPHA / rank)
        parameters |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    model = build_lora_head(base, Adapter(pairs))
    if model.score is not None:
        parameters[SCORE] = cast(nn.Parameter, model.score.requires_grad_(True).weight)
    return Trainee(model, parameters)


class TokenStates:
    """Boundary states of a model without a trunk: a token's state is its id."""

    def states(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """(T, 1) for each list of ids."""
        return [torch.tensor(ids, dtype=torch.float32)[:, None] for ids in texts]  # exact below 2**24


class WholeModel(HeadModule):
    """A transformers model, embedding included, where a head is expected: its states are token ids."""

    @classmethod
    def load(cls, folder: Path, is_scalar: bool = False) -> WholeModel:
        """In float32, in memory of its own; a scalar one has an output that starts at zero."""
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # not mapped from the file
        spec = describe_config(model.config, 1, bool(model.config.tie_word_embeddings))
        if not is_scalar:
            return cls(model, None, spec, OutputKind.TIED if spec.tied else OutputKind.OWN)
        score = nn.Linear(spec.d_model, 1, bias=False)
        nn.init.zeros_(score.weight)
        return cls(getattr(model, spec.base), score, spec, OutputKind.SCORE)

    def forward(
        self, states_1TD: torch.Tensor, position_ids_1T: torch.Tensor, rows: torch.Tensor | None = None, **attention: Any
    ) -> torch.Tensor:
        """As HeadModule.forward, with (1, T, 1) ids for states."""
        call = {"input_ids": states_1TD[..., 0].long(), "position_ids": position_ids_1T, "use_cache": False, **attention}
        if self.score is None:
            return cast(torch.Tensor, self.decoder(logits_to_keep=0 if rows is None else rows, **call).logits[0])
        hidden_TD = self.decoder(**call).last_hidden_state[0]
        return cast(torch.Tensor, self.score(hidden_TD if rows is None else hidden_TD[rows])[:, 0])

    def trainee(self) -> Trainee:
        """All of it: each parameter once, a tied one too."""
        named = dict(self.requires_grad_(True).decoder.named_parameters())
        output: dict[str, nn.Parameter] = {} if self.score is None else {SCORE: cast(nn.Parameter, self.score.weight)}
        return Trainee(self, named | output)
