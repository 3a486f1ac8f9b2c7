"""Precedence of flags, environment and file; what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.precision import SERVED_PRECISIONS, Precision
from polyhead.server.config import OTHER_VARIABLES, ServeConfig, load_config
from tests.certificates import write_pair
from tests.guards.tree import modules


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("POLYHEAD_")]:
        monkeypatch.delenv(name)


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text("port = 1\nkeep_versions = 3\ncache_bytes = 5\n")
    monkeypatch.setenv("POLYHEAD_PORT", "2")
    monkeypatch.setenv("POLYHEAD_CACHE_BYTES", "6")
    config = load_config({"port": 3, "host": None}, file)
    assert (config.port, config.cache_bytes, config.keep_versions, config.host) == (3, 6, 3, "127.0.0.1")


def test_unknown_keys_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(InvalidArgument) as caught:
        load_config({}, file)
    assert caught.value.field == "prot"


@pytest.mark.parametrize("text", ["port = ", "port = 'x'"])
def test_bad_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InvalidArgument):
        load_config({}, tmp_path / "c.toml")
    with pytest.raises(InvalidArgument):
        load_config({}, tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("given", "trunk", "head"),
    [
        ({}, "float32", "float32"),
        ({"trunk_dtype": "int8"}, "int8", "float32"),
        ({"device": "cuda:1"}, "bfloat16", "bfloat16"),
        ({"device": "cuda", "trunk_dtype": "float32"}, "float32", "float32"),
        ({"device": "cuda", "trunk_dtype": "int8"}, "int8", "bfloat16"),
        ({"device": "cuda", "head_dtype": "int8"}, "bfloat16", "int8"),
    ],
)
def test_a_gpu_serves_in_bfloat16_unless_told_otherwise(given: dict[str, str], trunk: str, head: str) -> None:
    config = load_config(given)
    assert (config.trunk_dtype, config.head_dtype) == (trunk, head)


def test_the_environment_names_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_DEVICE", "cuda")
    monkeypatch.setenv("POLYHEAD_HEAD_DTYPE", "fp8")
    config = load_config({})
    assert (config.trunk_dtype, config.head_dtype) == (Precision.BFLOAT16, Precision.FP8)


@pytest.mark.parametrize(
    ("device", "head_device", "heads_on", "has_graphs"),
    [
        ("cpu", "", "cpu", True),
        ("cpu", "cpu", "cpu", True),
        ("cuda", "cuda:0", "cuda", True),
        ("cuda:1", "cuda", "cuda:0", False),
        ("cuda:0", "cuda:1", "cuda:1", False),
    ],
)
def test_where_heads_are(device: str, head_device: str, heads_on: str, has_graphs: bool) -> None:
    config = load_config({"device": device, "head_device": head_device})
    assert (config.heads_on, config.cuda_graphs) == (heads_on, has_graphs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"head_device": "cuda"}, "--head-device must be of the kind of --device: cuda beside cpu"),
        ({"device": "cuda:0", "head_device": "cuda:1", "cuda_graphs": True}, "--cuda-graphs records steps of one device"),
        ({"head_device": "tpu"}, "--head-device: String should match"),
    ],
)
def test_heads_that_cannot_be_there(flags: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        load_config(flags)


@pytest.mark.parametrize(
    ("flags", "device"),
    [
        ({}, "cpu"),
        ({"device": "cuda:1"}, "cuda:1"),
        ({"device": "cuda:1", "trunk_dtype": "int8"}, "cpu"),
        ({"device": "cuda:1", "trunk_dtype": "fp8"}, "cpu"),
    ],
)
def test_where_a_trunk_is_loaded(flags: dict[str, str], device: str) -> None:
    from polyhead.server.process.loading import loaded_to  # torch

    assert loaded_to(load_config(flags)) == device


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ServeConfig().port = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "flags",
    [
        {"trunk_dtype": "int4"},
        {"device": "tpu"},
        {"port": 70000},
        {"cache_bytes": 0},
        {"interactive_share": 1.0},
        {"keep_versions": 0},
    ],
)
def test_bad_values(flags: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load_config(flags)
    assert caught.value.field == next(iter(flags))


def pem(tmp_path: Path, mode: int = 0o600) -> dict[str, Path]:
    cert, key = write_pair(tmp_path)
    key.chmod(mode)
    return {"tls_cert": cert, "tls_key": key}


def test_beyond_loopback_needs_tls_and_tokens(tmp_path: Path) -> None:
    token = {"token_worker": "worker-token-0123456789"}
    for partial in ({}, pem(tmp_path), token):
        with pytest.raises(InvalidArgument, match="refusing to listen"):
            load_config({"host": "0.0.0.0", **partial})
    assert load_config({"host": "0.0.0.0", **pem(tmp_path), **token})
    assert load_config({"host": "0.0.0.0", "insecure": True})
    for host in ("localhost", "::1", "127.3.2.1"):
        assert load_config({"host": host})


def test_key_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="chmod 600"):
        load_config(pem(tmp_path, 0o604))
    with pytest.raises(InvalidArgument, match="come together"):
        load_config({"tls_cert": tmp_path / "cert"})


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tokens", "rules"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """They ended in a traceback and exit status 1, which a supervisor takes for a crash and tries again."""
    for path in (tmp_path / "missing", tmp_path):
        flags = {**pem(tmp_path), name: (path,) if name == "rules" else path}
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(InvalidArgument, match=f"cannot read {flag}: {path}: (No such file|Is a directory)"):
            load_config(flags)


def test_raw_tokens_are_dropped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_TOKEN_WORKER", "worker-token-0123456789")
    config = load_config({})
    assert "worker-token" not in repr(config)
    assert config.has_tokens
    assert config.authenticator().is_enabled


def test_store_is_named_by_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_config({}).store_dir == tmp_path / "polyhead" / "smollm2-135m-instruct"
    assert load_config({"model": "/m/My Model", "split_layer": 3}).store_dir == tmp_path / "polyhead" / "my-model-k3"
    assert load_config({"model": "/m/..", "store": tmp_path / "s"}).store_dir == tmp_path / "s"


def test_every_flag_has_its_variable_and_its_line_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--drain-grace and --rules had other names in the environment, where they were ignored, or a traceback."""
    monkeypatch.setenv("POLYHEAD_DRAIN_GRACE", "5")
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml", "c.yaml"):
        Path(name).touch()
    monkeypatch.setenv("POLYHEAD_RULES", "a.yaml:b.yaml")
    settings = load_config({})
    assert settings.drain_grace == 5
    assert settings.rules == (Path("a.yaml"), Path("b.yaml"))
    monkeypatch.setenv("POLYHEAD_FORMATS", "d.yaml")
    assert load_config({}).formats == (Path("d.yaml"),)
    monkeypatch.delenv("POLYHEAD_RULES")
    file = tmp_path / "c.toml"
    file.write_text('rules = ["c.yaml"]\n')
    assert load_config({}, file).rules == (Path("c.yaml"),)
    monkeypatch.setenv("POLYHEAD_RECIPES", "d.yaml:e.yaml")
    assert load_config({}).recipes == (Path("d.yaml"), Path("e.yaml"))


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("POLYHEAD_TOKNES", "POLYHEAD_TOKENS"),
        ("POLYHEAD_MEMORY_BUGDET", "POLYHEAD_MEMORY_BUDGET"),
        ("polyhead_cache_byte", "POLYHEAD_CACHE_BYTES"),
        ("POLYHEAD_SERVICE_HOST", "enableServiceLinks: false"),
        ("POLYHEAD_PORT_50051_TCP", "enableServiceLinks: false"),
    ],
)
def test_an_unknown_variable_is_an_error(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were ignored in silence: a server with POLYHEAD_TOKNES had no tokens."""
    monkeypatch.setenv(variable, "x")
    with pytest.raises(InvalidArgument) as caught:
        load_config({})
    assert caught.value.field == variable
    what, suggestion = caught.value.message.split("\nhint: ")
    assert what == f"unknown variable in the environment: {variable}"
    assert hint in suggestion


def test_variables_that_others_read_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in OTHER_VARIABLES:
        monkeypatch.setenv(variable, "x")
    monkeypatch.setenv("XPOLYHEAD_PORT", "x")
    assert load_config({}).port == 50051


def test_every_variable_that_our_code_names_is_known() -> None:
    """A new one that some module reads has to be listed, and a listed one has to be read by some module."""
    settings = {f"POLYHEAD_{name.upper()}" for name in ServeConfig.model_fields}
    texts = [path.read_text(encoding="utf-8") for name, path in modules().items() if name != "polyhead.server.config"]
    named = {name for text in texts for name in re.findall(r"[\"`](POLYHEAD_[A-Z_]*[A-Z])[\"`=]", text)}
    assert named - settings == OTHER_VARIABLES


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"port": 70000}, "--port must be at most 65535: 70000"),
        ({"cache_bytes": 0}, "--cache-bytes must be above 0: 0"),
        ({"log_format": "xml"}, "--log-format must be 'text' or 'json': 'xml'"),
        ({"tls_cert": Path("cert")}, "--tls-cert and --tls-key come together"),
    ],
)
def test_errors_name_the_flag_in_plain_words(flags: dict[str, object], said: str) -> None:
    """They gave pydantic's words: "bad setting port: Input should be less than or equal to 65535"."""
    with pytest.raises(InvalidArgument) as caught:
        load_config(flags)
    assert caught.value.message == said


def test_errors_name_the_variable_or_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('drain_grace = "soon"\n')
    with pytest.raises(InvalidArgument, match=r"^the setting drain_grace must be a number: 'soon'$"):
        load_config({}, file)
    monkeypatch.setenv("POLYHEAD_KEEP_VERSIONS", "few")
    with pytest.raises(InvalidArgument, match=r"^POLYHEAD_KEEP_VERSIONS must be a whole number: 'few'$"):
        load_config({})


@pytest.mark.parametrize("dtype", SERVED_PRECISIONS)
def test_heads_can_be_stored_at_every_precision_that_is_served(dtype: Precision) -> None:
    """`--trunk-dtype fp8` could not store its first heads: unknown precision."""
    manifest = HeadManifest(HeadKind.POLICY, "a" * 64, split_layer=1, num_layers=2, output=OutputKind.TIED, precision=dtype)
    assert HeadManifest.from_json(manifest.to_json()).precision == dtype
