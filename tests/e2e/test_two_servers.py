"""Two servers behind one address: what was pushed to one is not taken for what the other holds under the same number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyhead.client import Client
from polyhead.client.errors import FailedPrecondition
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama


def changed(client: Client, factor: float) -> dict[str, torch.Tensor]:
    """The policy with another last norm."""
    weights = {name: torch.as_tensor(tensor) for name, tensor in client.pull_head("policy@1").items()}
    return {name: tensor * factor if name == "model.norm.weight" else tensor for name, tensor in weights.items()}


def test_an_activation_after_the_address_moved_is_refused(tmp_path: Path) -> None:
    """It succeeded, with other weights: each server's first pushed version is policy@2."""
    save_tiny_llama(tmp_path / "model")
    with serving(tmp_path / "model", tmp_path / "a") as first, serving(tmp_path / "model", tmp_path / "b") as second:
        with Client(second.address) as other:
            other.activate({"policy": other.push("policy", changed(other, 3.0))})
            theirs = other.head("policy").digest
        both = f"ipv4:{first.address},{second.address}"
        with Client(both) as client:
            report = client.push("policy", changed(client, 2.0))
            assert report.head.ref == "policy@2"
            first.process.kill()
            first.process.wait()
            for meant in (report, report.version):
                with pytest.raises(FailedPrecondition, match="policy@2 holds other weights here"):
                    client.activate({"policy": meant})
            assert client.generations(1)[0].number == 2
            assert client.head("policy").digest == theirs
