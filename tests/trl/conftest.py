"""TRL's own trainers need TRL, which `make test-trl` installs in an environment of its own."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("trl") else ["test_evidence.py", "test_trl.py", "test_trl_numbers.py"]
