"""Ray itself is in an environment of its own: `make test-ray`."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("ray") else ["test_serve.py"]
