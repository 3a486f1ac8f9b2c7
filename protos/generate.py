"""Generate the committed stubs beside the .proto files: `python protos/generate.py [OUT]`. A test compares OUT with what is committed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out: Path) -> None:
    """Write messages, their types, service stubs and their types below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("polyhead/v1/*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where protoc-gen-mypy_grpc is
    targets = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    status = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *targets, *files])
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
