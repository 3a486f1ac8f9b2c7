"""Everything that `polyhead serve` can be told, checked when made. Precedence: flags, POLYHEAD_* variables, file, defaults."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from polyhead.heads.errors import InvalidArgument
from polyhead.server.auth import Authenticator, Role, hash_token, load_tokens

GIB = 1 << 30
ENV_PREFIX = "POLYHEAD_"
# Variables with our prefix that others read: the command line of clients, and the failpoints of heads/failpoints.py
OTHER_VARIABLES = frozenset({"POLYHEAD_SERVER", "POLYHEAD_TOKEN", "POLYHEAD_TLS_CA", "POLYHEAD_FP"})
Dtype = Literal["float32", "bfloat16", "int8"]
TokenHash = Annotated[str, BeforeValidator(lambda raw: hash_token(raw) if raw else "")]  # the raw token is dropped at once


def _paths(value: object) -> object:
    """In the environment: paths joined as in PATH."""
    return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


RuleFiles = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]


class ServeConfig(BaseSettings):
    """Frozen; an unknown key is an error. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    model: str = ""  # a folder, a hub name, or empty: the embedded SmolLM2
    split_layer: int = Field(0, ge=0)  # 0: round(0.8 * number of layers)
    tap_layer: int = Field(-1, ge=-1)  # a layer inside the trunk whose states are kept, too; 0: none, -1: the model's middle
    store: Path | None = None  # None: a folder named after the model under the user's state folder
    trunk_dtype: Dtype = "float32"
    head_dtype: Dtype = "float32"
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    layers: Literal["fast", "plain"] = "fast"  # fast: our own for llama-like families; plain: transformers'
    deterministic: bool = False  # bit for bit the same whatever the neighbours, chunks and cache hits
    cuda_graphs: bool = True  # decode steps are recorded and launched as one, on a GPU with FlashAttention 3
    threads: int = Field(0, ge=0)  # of the engine's matrix products; 0: as torch finds

    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535)  # 0: any free one
    metrics_host: str = "127.0.0.1"  # plain HTTP without a token: open it to the scraper's network only
    metrics_port: int = Field(9464, ge=-1, le=65535)  # 0: any free one, -1: none
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tokens: Path | None = None  # TOML file of tokens by role
    token_worker: TokenHash = ""
    token_trainer: TokenHash = ""
    token_admin: TokenHash = ""
    insecure: bool = False  # listen beyond loopback without TLS or tokens
    reflection: bool = False

    cache_bytes: int = Field(2 * GIB, gt=0)  # trunk keys, values and boundary states
    memory_budget: int = Field(0, ge=0)  # heads' weights; 0: three quarters of what is free when the trunk is loaded
    max_context: int = Field(0, ge=0)  # 0: the model's own
    max_queue_requests: int = Field(1024, gt=0)
    max_queue_tokens: int = Field(4_000_000, gt=0)
    interactive_share: float = Field(0.25, ge=0, lt=1)  # of queue and pools, kept for PRIORITY_INTERACTIVE
    default_deadline_s: float = Field(3600.0, gt=0)  # also the longest
    push_idle_s: float = Field(60.0, gt=0)  # a push without a chunk for so long is given up
    keep_versions: int = Field(10, ge=1)  # of each head name
    max_idle_per_name: int = Field(2, ge=0)  # versions of one head name kept in memory that no set and no request uses
    drain_delay_s: float = Field(0.0, ge=0)  # a load balancer's notice
    drain_grace: float = Field(45.0, ge=0)  # seconds that running calls get at the end

    rules: RuleFiles = ()  # more rule sets and templates
    formats: RuleFiles = ()  # more transcript formats
    recipes: RuleFiles = ()  # more reward recipes
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key come together")
        named = [(name, getattr(self, name)) for name in ("tls_cert", "tls_key", "tokens")]
        for name, path in [*named, *(("rules", path) for path in self.rules)]:
            if path is not None:
                _check_readable(name, path)
        if self.tls_cert is not None and self.tls_key is not None:
            _check_key_file(self.tls_key)
        is_protected = self.tls_cert is not None and self.has_tokens
        if not self.is_loopback and not is_protected and not self.insecure:
            raise ValueError(
                f"refusing to listen on {self.host} without TLS and tokens: give tls_cert, tls_key and tokens, or insecure"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def has_tokens(self) -> bool:
        return self.tokens is not None or bool(self.token_worker or self.token_trainer or self.token_admin)

    @property
    def store_dir(self) -> Path:
        """Where heads live: as told, or `$XDG_STATE_HOME/polyhead/<model>`, one folder per model and split."""
        if self.store is not None:
            return self.store
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        name = re.sub(r"[^a-z0-9._-]+", "-", Path(self.model or "smollm2-135m-instruct").name.lower()).strip("-.") or "model"
        return state / "polyhead" / (f"{name}-k{self.split_layer}" if self.split_layer else name)

    def authenticator(self) -> Authenticator:
        """Reads the tokens file; raises InvalidArgument if it is not as it should be."""
        given = ((Role.WORKER, self.token_worker), (Role.TRAINER, self.token_trainer), (Role.ADMIN, self.token_admin))
        hashes = [(role, known) for role, known in given if known]
        if self.tokens is not None:
            hashes += load_tokens(self.tokens)
            if not hashes:
                raise InvalidArgument("the tokens file holds no token", field="tokens")
        return Authenticator(tuple(hashes))


def load_config(flags: Mapping[str, Any], config_file: Path | None = None) -> ServeConfig:
    """Merge flags (None: not given), environment and file; raises InvalidArgument naming the key at fault."""
    _check_variables(os.environ)
    given = {key: value for key, value in flags.items() if value is not None}
    from_file = _read_toml(config_file) if config_file is not None else {}
    try:
        from_env = EnvSettingsSource(ServeConfig)()
        return ServeConfig(**{**{key: value for key, value in from_file.items() if key not in from_env}, **given})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        what = f"bad setting {field}" if field else "bad settings"
        raise InvalidArgument(f"{what}: {first['msg']}", field=field) from None
    except SettingsError as error:
        raise InvalidArgument(f"bad setting in the environment: {error}", field="environment") from None


def _check_variables(environment: Mapping[str, str]) -> None:
    """A variable that nobody reads is an error: a misspelt one would leave its setting at the default in silence."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in ServeConfig.model_fields} | OTHER_VARIABLES
    for variable in sorted(environment):
        name = variable.upper()  # pydantic-settings reads them in any case
        if not name.startswith(ENV_PREFIX) or name in known:
            continue
        if name.startswith(("POLYHEAD_SERVICE_", "POLYHEAD_PORT_")):  # made by Kubernetes for a Service of the name `polyhead`
            hint = "set enableServiceLinks: false in the pod's spec"
        else:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]
            hint = f"the nearest known one is {nearest}"
        raise InvalidArgument(f"unknown variable in the environment: {variable[:80]}\nhint: {hint}", field=variable)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"cannot read the configuration file: {error.strerror}", field="config") from None
    except ValueError as error:
        raise InvalidArgument(f"the configuration file is not TOML: {error}", field="config") from None


def _check_readable(name: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"cannot read {name}: {path}: {error.strerror}") from None


def _check_key_file(key: Path) -> None:
    """What it holds is looked at when the server listens (tls.py)."""
    if key.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ValueError("tls_key is open to other users: chmod 600 it")
