"""The settings of `polyhead serve`, checked when the object is made. Precedence: flags, POLYHEAD_* variables, file, defaults."""

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
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.precision import SERVED_PRECISIONS, Precision
from polyhead.heads.model.embedded import user_folder
from polyhead.server.process.setting_errors import setting_error
from polyhead.server.rpc.auth import Authenticator, Role, Token, hash_token, load_tokens

GIB = 1 << 30
_ADDRESS = re.compile(r"([^:\s]+|\[[0-9A-Fa-f:]+\]):\d{1,5}")
ENV_PREFIX = "POLYHEAD_"
# Variables with our prefix that are no settings: of the clients' command line and of failpoints (heads/store/failpoints.py)
OTHER_VARIABLES = frozenset({"POLYHEAD_SERVER", "POLYHEAD_TOKEN", "POLYHEAD_TLS_CA", "POLYHEAD_FP", "POLYHEAD_ANNOTATE_FAILPOINT"})
TokenHash = Annotated[str, BeforeValidator(lambda raw: hash_token(raw) if raw else "")]  # the raw token is dropped at once


def _served(value: object) -> Precision:
    """A precision that weights are served in; the error lists them, as for any other setting of a few words."""
    if value in SERVED_PRECISIONS:
        return Precision(str(value))
    known = [repr(each.value) for each in SERVED_PRECISIONS]
    raise PydanticCustomError("literal_error", "not served", {"expected": f"{', '.join(known[:-1])} or {known[-1]}"})


def _paths(value: object) -> object:
    """In the environment: paths joined as in PATH."""
    return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


ServedPrecision = Annotated[Precision, BeforeValidator(_served)]
RuleFiles = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_paths)]


class ServeConfig(BaseSettings):
    """Frozen; an unknown key is an error. Sizes are in bytes, times in seconds. The descriptions become docs/reference/settings.md."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field("", description="Model folder or hub name; empty: the embedded SmolLM2-135M")
    split_layer: int = Field(0, ge=0, description="Layers in the trunk; 0: round(0.8 * number of layers)")
    tap_layer: int = Field(
        -1, ge=-1, description="Layer inside the trunk whose states are kept, too, for OOD scores; 0: none, -1: the model's middle"
    )
    store: Path | None = Field(None, description="Folder of the heads; empty: named after the model, under the user's state folder")
    trunk_dtype: ServedPrecision = Field(
        Precision.FLOAT32,
        description="Precision of the trunk: float32, bfloat16, int8, or fp8 on a GPU, where bfloat16 is the default",
    )
    head_dtype: ServedPrecision = Field(
        Precision.FLOAT32,
        description="Precision of the heads: float32, bfloat16, int8, or fp8 on a GPU, where the default is that of the trunk, "
        "or bfloat16 beside 8 bits",
    )
    output_dtype: Annotated[Precision | None, BeforeValidator(lambda raw: _served(raw) if raw else None)] = Field(
        None,
        description="Precision of the output projection to the vocabulary: float32, bfloat16, int8, or fp8 on a GPU; "
        "empty: as trunk_dtype if it is tied to the embedding, else as head_dtype",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N")
    head_device: str = Field(
        "",
        pattern=r"^(|cpu|cuda(:\d+)?)$",
        description="Device of the heads, their caches, outputs and boundary states: another GPU than the trunk's; empty: as device",
    )
    layers: Literal["fast", "plain"] = Field(
        "fast", description="fast: our own for llama-like families; plain: transformers'"
    )
    deterministic: bool = Field(
        False, description="Refuse to start where the same bits cannot be promised, whatever the neighbours, chunks and cache hits"
    )
    tensor_parallel: int = Field(
        1, ge=1, description="Ranks, each a process with a share of every layer: on a GPU of its own, or on the CPU; 1: one process"
    )
    rank_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds without a sign of life from a rank, or in one sum over ranks, after which the process ends with status 72",
    )
    cuda_graphs: bool = Field(True, description="Record decode steps on a GPU and launch each as one")
    threads: int = Field(0, ge=0, description="Threads of the engine's matrix products; 0: as torch finds")

    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback TLS and tokens are required")
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0: any free one")
    metrics_host: str = Field(
        "127.0.0.1", description="Address of the metrics, plain HTTP without a token: open it to the scraper's network only"
    )
    metrics_port: int = Field(9464, ge=-1, le=65535, description="Port of the metrics; 0: any free one, -1: none")
    tls_cert: Path | None = Field(None, description="PEM certificate chain; comes with tls_key")
    tls_key: Path | None = Field(None, description="PEM key, readable by its owner only")
    tokens: Path | None = Field(None, description="TOML file of bearer tokens by role")
    token_worker: TokenHash = Field("", description="A worker's token, beside those of the file")
    token_trainer: TokenHash = Field("", description="A trainer's token, beside those of the file")
    token_admin: TokenHash = Field("", description="An admin's token, beside those of the file")
    token_replica: TokenHash = Field("", description="A follower's token, beside those of the file")
    insecure: bool = Field(False, description="Listen beyond loopback without TLS or tokens")
    reflection: bool = Field(False, description="Offer gRPC reflection")

    follow: str = Field("", description="Primary whose heads this server copies and serves, HOST:PORT; empty: it is a primary itself")
    follow_token: str = Field("", repr=False, description="Token of the role replica that the primary knows")
    follow_ca: Path | None = Field(
        None, description="PEM certificates that signed the primary's; empty: the system's, and no TLS to loopback or with insecure"
    )
    advertise: str = Field("", description="Address by which clients and the primary know this server, HOST:PORT; empty: where it listens")
    replicas: int = Field(
        0, ge=0, description="Followers that a primary waits for before a change that requires all: at least so many must be connected"
    )

    cache_bytes: int = Field(2 * GIB, gt=0, description="Bytes for the trunk's keys, values and boundary states")
    commit_caches: bool = Field(
        True, description="Take the caches' memory soon after the start, not when it is first used, which slows steps"
    )
    memory_budget: int = Field(0, ge=0, description="Bytes for heads' weights; 0: three quarters of what is free when the trunk is loaded")
    max_context: int = Field(0, ge=0, description="Most tokens of prompt and reply together; 0: the model's own")
    max_queue_requests: int = Field(1024, gt=0, description="Requests that are open at once, waiting or running")
    max_queue_tokens: int = Field(4_000_000, gt=0, description="Tokens that all open requests can come to")
    interactive_share: float = Field(0.25, ge=0, lt=1, description="Share of queue and pools kept for PRIORITY_INTERACTIVE")
    default_deadline_s: float = Field(3600.0, gt=0, description="Seconds for a call that gives no deadline; also the longest")
    unread_bytes: int = Field(GIB, gt=0, description="Bytes of all calls that may wait to be read; beyond them unread calls end")
    unread_stall_s: float = Field(900.0, gt=0, description="Seconds after which a call ends of which no message was taken")
    push_idle_s: float = Field(60.0, gt=0, description="Seconds after which a push or a fit that sends nothing is ended")
    hang_limit_s: float = Field(
        300.0, ge=0, description="Seconds of one engine step, with requests open, after which the process ends with status 71; 0: never"
    )
    keep_versions: int = Field(10, ge=1, description="Versions kept of each head name, and of each OOD fit")
    max_idle_per_name: int = Field(2, ge=0, description="Versions of one head name kept in memory that no set and no request uses")
    drain_delay_s: float = Field(0.0, ge=0, description="Seconds that a drain takes at least, before the grace: a load balancer's notice")
    drain_grace: float = Field(45.0, ge=0, description="Seconds that running calls get at the end")

    rules: RuleFiles = Field((), description="More files of rule sets and rule templates")
    formats: RuleFiles = Field((), description="More files of transcript formats")
    recipes: RuleFiles = Field((), description="More files of reward recipes")
    log_format: Literal["text", "json"] = Field("text", description="text or json")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @model_validator(mode="before")
    @classmethod
    def _set_defaults_of_gpus(cls, given: Any) -> Any:
        """A GPU reads half as much in bfloat16, which is what models for it are trained in."""
        if not isinstance(given, Mapping) or not str(given.get("device", "")).startswith("cuda"):
            return given
        trunk = given.get("trunk_dtype") or Precision.BFLOAT16
        head = trunk if trunk in (Precision.FLOAT32, Precision.BFLOAT16) else Precision.BFLOAT16
        has_one_device = _numbered(given.get("head_device") or given["device"]) == _numbered(given["device"])
        has_graphs = has_one_device and str(given.get("tensor_parallel", 1)) == "1"
        return {"head_dtype": head, **({} if has_graphs else {"cuda_graphs": False}), **given, "trunk_dtype": trunk}

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_devices()
        if self.tensor_parallel > 1:
            self._check_parallel()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key come together")
        named = [(name, getattr(self, name)) for name in ("tls_cert", "tls_key", "tokens", "follow_ca")]
        for name, path in [*named, *(("rules", path) for path in self.rules)]:
            if path is not None:
                _check_readable(name, path)
        if self.tls_cert is not None and self.tls_key is not None:
            _check_key_file(self.tls_key)
        for name in ("follow", "advertise"):
            if (address := getattr(self, name)) and not _ADDRESS.fullmatch(address):
                raise ValueError(f"--{name} must be HOST:PORT: {address[:80]!r}")
        if self.follow and self.replicas:
            raise ValueError("--replicas is for a primary: a server that follows one has no followers of its own")
        is_protected = self.tls_cert is not None and self.has_tokens
        if not self.is_loopback and not is_protected and not self.insecure:
            raise ValueError(
                f"refusing to listen on {self.host} without TLS and tokens: give --tls-cert, --tls-key and --tokens, or --insecure"
            )
        return self

    def _check_devices(self) -> None:
        if not self.has_heads_apart:
            return
        if self.device.partition(":")[0] != self.head_device.partition(":")[0]:
            raise ValueError(f"--head-device must be of the kind of --device: {self.head_device} beside {self.device}")
        if self.cuda_graphs:
            raise ValueError(
                f"--cuda-graphs records steps of one device, and heads are on another: {self.heads_on}\n"
                "hint: leave out --cuda-graphs or --head-device"
            )

    def _check_parallel(self) -> None:
        from polyhead.server.parallel.refusals import why_not  # one process imports nothing of it

        if sentence := why_not(self):
            raise ValueError(sentence)

    @property
    def heads_on(self) -> str:
        """Device of the heads."""
        return _numbered(self.head_device) if self.has_heads_apart else self.device

    @property
    def has_heads_apart(self) -> bool:
        """On another device than the trunk."""
        return _numbered(self.head_device or self.device) != _numbered(self.device)

    @property
    def is_loopback(self) -> bool:
        return _is_loopback(self.host)

    @property
    def follows_plainly(self) -> bool:
        """Without TLS to the primary."""
        return self.follow_ca is None and (self.insecure or _is_loopback(self.follow.rpartition(":")[0].strip("[]")))

    @property
    def has_tokens(self) -> bool:
        return self.tokens is not None or any((self.token_worker, self.token_trainer, self.token_admin, self.token_replica))

    @property
    def store_dir(self) -> Path:
        """Folder of the heads: the setting, or `$XDG_STATE_HOME/polyhead/<model>`, one folder per model and split."""
        if self.store is not None:
            return self.store
        name = re.sub(r"[^a-z0-9._-]+", "-", Path(self.model or "smollm2-135m-instruct").name.lower()).strip("-.") or "model"
        return user_folder("XDG_STATE_HOME", ".local/state") / (f"{name}-k{self.split_layer}" if self.split_layer else name)

    def authenticator(self) -> Authenticator:
        """From the settings and the tokens file. InvalidArgument if that file is malformed."""
        given = {role: getattr(self, f"token_{role.value}", "") for role in Role}  # an annotator's are in the file alone
        tokens = [Token.of(role, known) for role, known in given.items() if known]
        if self.tokens is not None:
            tokens += load_tokens(self.tokens)
            if not tokens:
                raise InvalidArgument("the tokens file holds no token", field="tokens")
        return Authenticator(tuple(tokens))


def load_config(flags: Mapping[str, Any], config_file: Path | None = None) -> ServeConfig:
    """Merge flags (None: not given), environment and file; raises InvalidArgument naming the key at fault."""
    _check_variables(os.environ)
    given = {key: value for key, value in flags.items() if value is not None}
    from_file = _read_toml(config_file) if config_file is not None else {}
    from_env: Mapping[str, Any] = {}
    try:
        from_env = EnvSettingsSource(ServeConfig)()
        return ServeConfig(**{**{key: value for key, value in from_file.items() if key not in from_env}, **given})
    except ValidationError as error:
        raise setting_error(error, given, from_env, ENV_PREFIX) from None
    except SettingsError as error:
        raise InvalidArgument(f"bad setting in the environment: {error}", field="environment") from None


def _check_variables(environment: Mapping[str, str]) -> None:
    """An unknown POLYHEAD_ variable is an error: a misspelt one would leave its setting at the default without a word."""
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


def _numbered(device: str) -> str:
    """A GPU without a number is the first."""
    return "cuda:0" if device == "cuda" else device


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
        raise ValueError(f"cannot read --{name.replace('_', '-')}: {path}: {error.strerror}") from None


def _check_key_file(key: Path) -> None:
    """What it holds is looked at when the server listens (tls.py)."""
    if key.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ValueError("--tls-key is open to other users: chmod 600 it")
