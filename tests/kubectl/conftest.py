"""These tests need kubectl, which `make test` does without: `make test-kubectl`."""

from __future__ import annotations

import shutil

collect_ignore = [] if shutil.which("kubectl") else ["test_kustomize.py"]
