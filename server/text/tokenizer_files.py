"""A model folder's files beside its weights: the tokenizer, and what generation_config.json says. Errors name the file that cannot be read.

transformers raises many kinds of errors here, most of them about packages that would not help. Nothing is fetched, no code of the
folder's runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyhead.heads.format.errors import DataLoss, FailedPrecondition
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.weight_files import read_json

__all__ = ["load_tokenizer", "read_eos_ids"]

_WITH_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "tekken.json", "*.tiktoken")
_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_COPY = "copy tokenizer.json and tokenizer_config.json from the model that this one was trained from"


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a local folder. FailedPrecondition or DataLoss says which file is missing, foreign or damaged."""
    if not any(any(folder.glob(pattern)) for pattern in _WITH_VOCABULARY):
        raise FailedPrecondition(f"the model folder has no tokenizer: {folder.name!r}\nhint: {_COPY}")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _reason(folder, error) from error


def _reason(folder: Path, error: Exception) -> FailedPrecondition | DataLoss:
    """Why it cannot be read, from what lies in the folder: the error itself seldom says."""
    for name in _JSON:
        if (folder / name).is_file():
            try:
                read_json(folder / name, "")
            except DataLoss as damage:
                return damage
    if (folder / "tokenizer.json").is_file():
        what = "the tokenizer's files are damaged, or of a form that the installed transformers does not read"
        return FailedPrecondition(f"{what}: {type(error).__name__}: {_first_line(error)}\nhint: {_COPY}")
    if _has_own_code(folder):
        return FailedPrecondition(
            "the tokenizer needs its own Python code (auto_map), which is never run\n"
            "hint: use a checkpoint that has tokenizer.json, or save one from the tokenizer where its code may run"
        )
    return FailedPrecondition(
        f"the tokenizer comes without tokenizer.json, in a form that cannot be read here: {_first_line(error)}\n"
        "hint: where it loads: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
    )


def _has_own_code(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    return file.is_file() and "auto_map" in read_json(file, "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_eos_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """From generation_config.json if it names any, else from the config. Nothing else of that file counts."""
    file = checkpoint.folder / "generation_config.json"
    found = read_json(file, "").get("eos_token_id") if file.is_file() else None
    where = "config.json" if found is None else file.name
    if found is None:
        found = checkpoint.config.eos_token_id
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if wrong := [each for each in ids if type(each) is not int or each < 0]:
        hint = "hint: correct it; generation_config.json may also be deleted"
        raise FailedPrecondition(f"eos_token_id in {where} is not a token id or a list of them: {str(wrong[0])[:80]!r}\n{hint}")
    return frozenset(ids)
