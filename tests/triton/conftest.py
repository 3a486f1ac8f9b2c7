"""Kernels in Triton need triton, which `make test-triton` installs in an environment of its own: its interpreter runs them on a CPU."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["test_paged_kernels.py", "test_fused_kernels.py", "test_compile.py"]
