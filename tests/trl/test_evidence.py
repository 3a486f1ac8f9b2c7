"""The half of the evidence that needs TRL, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead.client.rlhf.evidence.sharing.plan import SharingPlan
from polyhead.client.rlhf.evidence.sharing.trl_rounds import measure_rounds
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and datasets' own


@pytest.mark.parametrize("is_served", [False, True])
def test_rounds_are_timed(tmp_path: Path, is_served: bool) -> None:
    """Two rounds behind the first one; a round holds its experience."""
    sizes = {"rounds": 2, "prompts": 2, "samples": 2, "max_new_tokens": 4, "learning_rate": 1e-4}
    (tmp_path / "sharing.json").write_text(json.dumps({"experiment": "sharing", **sizes}))
    model = save_tiny_llama(tmp_path / "model", tied=True)
    with serving(model, tmp_path / "store") as server:
        found = measure_rounds(server.address, model, SharingPlan.read(tmp_path / "sharing.json"), is_served)
    assert len(found["wall"]) == len(found["experience"]) == 2
    assert all(0 < experience < wall for experience, wall in zip(found["experience"], found["wall"], strict=True))
