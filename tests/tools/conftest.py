"""The tools' own checks need the tools, which `make test-exports` installs in an environment of its own."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("argilla") and find_spec("label_studio_sdk") else ["test_tools.py"]
