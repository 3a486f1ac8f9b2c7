"""When an RL run has to go back: the policy has left its reference, or its reward has fallen. Plain numbers of rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.heads.training.rl.config import RLConfig


@dataclass(frozen=True)
class Measured:
    """What the guards read of one round's rollouts."""

    reward: float  # mean of a reply, KL left out
    reward_deviation: float  # over the replies
    kl_per_token: float


def why_back(now: Measured, earlier: Sequence[Measured], config: RLConfig) -> str:
    """Why the policy that drew `now` is not to be kept, else an empty text. `earlier` are the kept rounds before, the first one first."""
    if not earlier:
        return ""  # nobody trained what the first round drew with
    if now.kl_per_token > config.kl_limit:
        return f"KL to the reference is {now.kl_per_token:.3f} nats a token, above {config.kl_limit:g}"
    best, unit = max(each.reward for each in earlier), earlier[0].reward_deviation
    if unit > 0 and now.reward < best - config.collapse * unit:
        return f"the reward fell from {best:.3f} to {now.reward:.3f}, more than {config.collapse:g} standard deviations of the first round"
    return ""
