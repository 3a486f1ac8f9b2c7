"""The numbers that our losses are held against are what the installed TRL computes; PPOTrainer's are TRL 1.12's, the last with one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.trl import numbers

pytestmark = pytest.mark.filterwarnings("default")  # TRL's own


@pytest.mark.parametrize("name", sorted(numbers.SOURCES.keys() - {"ppo"}))
def test_trl_still_computes_what_was_recorded(name: str) -> None:
    recorded: dict[str, Any] = json.loads(numbers.RECORDED.read_text())[name]
    found = numbers.SOURCES[name][1](recorded["given"])
    assert found == {key: pytest.approx(value, abs=1e-6) for key, value in recorded["found"].items()}
