"""What a stranger's folder lacks, and what the system refuses, ends a start with two lines and exit status 2, never with a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead.client.cli.app import build_app
from polyhead.heads.format.errors import FailedPrecondition, PolyheadError
from polyhead.heads.model import embedded
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.server.config import ServeConfig
from polyhead.server.metrics.metrics import Metrics
from polyhead.server.process import lifecycle
from polyhead.server.process.startup import build_services
from polyhead.server.process.workers import Workers
from polyhead.server.text.tokenizer_files import load_tokenizer, read_eos_ids
from tests.e2e.tiny import EOS, save_tiny_llama

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
SENTENCE_PIECE = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "good")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def without_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)


def sentence_piece_alone(folder: Path) -> None:
    without_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(SENTENCE_PIECE)


def own_code(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    sentence_piece_alone(folder)
    config |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text("raise SystemExit('it ran')")


def writes(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without_tokenizer, r"has no tokenizer: 'model'\nhint: copy tokenizer.json"),
        (sentence_piece_alone, r"without tokenizer\.json.*\nhint: .*save_pretrained"),
        (own_code, r"its own Python code \(auto_map\), which is never run\nhint: "),
        (writes("tokenizer.json", b"{"), r"tokenizer\.json is not JSON\nhint: save or download"),
        (writes("tokenizer.json", b"\xff\xfe\x00"), r"tokenizer\.json is not JSON\nhint: "),
        (writes("tokenizer.json", b"{}"), r"files are damaged, or of a form.*\nhint: "),
        (writes("tokenizer_config.json", b"[1]"), r"tokenizer_config\.json is not an object\nhint: "),
    ],
)
def test_a_tokenizer_that_cannot_be_read(folder: Path, break_it: Callable[[Path], None], message: str) -> None:
    """Each was a traceback of transformers, the tokenizers library or json."""
    break_it(folder)
    with pytest.raises(PolyheadError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"generation_config\.json is not JSON\nhint: "),
        ("[1]", r"generation_config\.json is not an object\nhint: "),
        ('{"eos_token_id": "x"}', r"eos_token_id in generation_config\.json is not a token id.*'x'\nhint: "),
        ('{"eos_token_id": [2, null]}', "not a token id"),
        ('{"eos_token_id": true}', "not a token id"),
    ],
)
def test_a_broken_generation_config(folder: Path, text: str, message: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(PolyheadError, match=message):
        read_eos_ids(Checkpoint.open(folder))


def test_eos_ids_come_from_either_file(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert read_eos_ids(Checkpoint.open(folder)) == {3, 4}
    (folder / "generation_config.json").write_text("{}")
    assert read_eos_ids(Checkpoint.open(folder)) == {EOS}


def test_small_files_are_looked_at_before_the_trunk_is_loaded(folder: Path, tmp_path: Path) -> None:
    """A 70B trunk takes minutes, and the tokenizer was read after it."""
    without_tokenizer(folder)
    steps: list[str] = []
    config = ServeConfig(model=str(folder), store=tmp_path / "store", split_layer=2)
    workers = Workers()
    with pytest.raises(FailedPrecondition, match="has no tokenizer"):
        build_services(config, Metrics(), workers, steps.append)
    workers.close()
    assert not [step for step in steps if step.startswith("loading the trunk")]


def test_a_user_without_name_and_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's uid that is in no passwd file: Path.home() raises RuntimeError."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(FailedPrecondition, match=rf"no home folder.*uid {os.getuid()}\nhint: set HOME, or XDG_STATE_HOME and --store"):
        _ = ServeConfig().store_dir
    with pytest.raises(FailedPrecondition, match="set HOME, or XDG_CACHE_HOME"):
        embedded.cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert embedded.cache_folder() == Path("/somewhere/polyhead")


def test_a_store_that_cannot_be_made_names_its_folder(folder: Path, tmp_path: Path) -> None:
    """A home that cannot be written to: the store said EACCES and nothing else."""
    with pytest.raises(PolyheadError) as caught:
        build_services(ServeConfig(model=str(folder), store=tmp_path / ("x" * 300), split_layer=2), Metrics(), Workers(), print)
    assert caught.value.message.startswith("could not open the store: ")
    assert caught.value.message.endswith(f"{'x' * 300}\nhint: name a folder that this user may write to: --store DIR")


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EACCES, "give this user"), (errno.EROFS, "can be written"), (errno.ENOSPC, "space"), (errno.EMFILE, "ulimit"), (0, "DEBUG")],
)
def test_what_the_system_refuses_is_two_lines_and_exit_2(number: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME that cannot be written to, a full disk: tracebacks and exit status 1."""

    async def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number), "/home-of-nobody/.local")

    monkeypatch.setattr(lifecycle, "run", refuse)
    done = CliRunner().invoke(build_app(["serve"]), ["serve", "--port", "0"])
    assert done.exit_code == 2, done.output
    error, last = done.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: the operating system refused a call during the start: ")
    assert error.endswith(": /home-of-nobody/.local")
    assert last.startswith("hint: ")
    assert hint in last
