"""kubectl makes of deploy/kubernetes what the other tests read there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import DEPLOY
from tests.deploy.kustomize import built, identity

FOLDERS = sorted(path.parent for path in (DEPLOY / "kubernetes").glob("*/kustomization.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_builds_the_same(folder: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    theirs = {identity(each): each for each in yaml.safe_load_all(done.stdout)}
    assert theirs == {identity(each): each for each in built(folder)}
