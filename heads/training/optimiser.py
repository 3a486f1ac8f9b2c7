"""One head's parameters under AdamW: its gradients' clipping, the moving average, and the way of all of it to a checkpoint and back.

Restored from `tensors`, it goes on with the same bits. Knows no loss, no data and no schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class HeadOptimiser:
    """Trains `parameters` in place. `num_updates` counts the steps taken."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        learning_rate: float,
        learning_rates: Mapping[str, float] | None = None,  # by tensor name, in place of `learning_rate`
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        average_decay: float = 0.0,  # of the moving average of the weights; 0: none is kept
    ) -> None:
        self.parameters = parameters
        self.num_updates = 0
        self.average = {name: each.detach().clone() for name, each in parameters.items()} if average_decay else {}
        self._average_decay = average_decay
        rates = {name: (learning_rates or {}).get(name, learning_rate) for name in parameters}
        groups = [{"params": [each], "lr": rates[name], "full_lr": rates[name]} for name, each in parameters.items()]
        self._adam = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad()

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm` together; returns their norm before."""
        return float(nn.utils.clip_grad_norm_(self.parameters.values(), max_norm))

    def step(self, share: float = 1.0) -> float:
        """One update at `share` of the learning rates; returns the first of them."""
        for group in self._adam.param_groups:
            group["lr"] = group["full_lr"] * share
        self._adam.step()
        self.num_updates += 1
        for name, kept in self.average.items():
            kept.lerp_(self.parameters[name].detach(), 1.0 - self._average_decay)
        return float(self._adam.param_groups[0]["lr"])

    def tensors(self) -> dict[str, Tensor]:
        """Everything but `num_updates`, sharing memory: parameter/NAME, first-moment/NAME, second-moment/NAME, average/NAME."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter/{name}"] = parameter
            if state := self._adam.state.get(parameter):
                tensors[f"first-moment/{name}"], tensors[f"second-moment/{name}"] = state["exp_avg"], state["exp_avg_sq"]
        return tensors | {f"average/{name}": kept for name, kept in self.average.items()}

    def restore(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Become what `tensors` and `num_updates` were taken from."""
        self.num_updates = num_updates
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                if (moment := tensors.get(f"first-moment/{name}")) is not None:
                    count, second = torch.tensor(float(num_updates)), tensors[f"second-moment/{name}"]
                    self._adam.state[parameter] = {"step": count, "exp_avg": moment.clone(), "exp_avg_sq": second.clone()}
                else:
                    self._adam.state.pop(parameter, None)
                if name in self.average:
                    self.average[name].copy_(tensors[f"average/{name}"])
