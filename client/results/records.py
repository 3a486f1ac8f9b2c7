"""What the client tells about the server: trunk, head versions, generations, status, pushes. Knows nothing of protobuf."""

from __future__ import annotations

from dataclasses import dataclass, field

from polyhead.client.results.results import HeadKind
from polyhead.client.wire.options import Rule
from polyhead.heads.format.lora import LoraAdapter

__all__ = [
    "Calibration",
    "Configuration",
    "Generation",
    "HeadManifest",
    "HeadVersion",
    "LoraAdapter",
    "OodFit",
    "PushReport",
    "RankMemory",
    "ResidentHead",
    "ResidentName",
    "RuleQuestions",
    "SourceTensor",
    "Status",
    "StoredTensor",
    "TrunkInfo",
]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of the trunk as the source checkpoint has it."""

    name: str
    sha256: str  # of its bytes in the checkpoint's own dtype
    dtype: str  # "float32", "bfloat16", "float16"


@dataclass(frozen=True, slots=True)
class TrunkInfo:
    """Identity and sizes of the frozen part."""

    trunk_id: str
    precision: str
    model: str
    split_layer: int
    num_layers: int  # of the whole model
    d_model: int
    vocab_size: int
    context_length: int
    eos_token_ids: list[int]
    tokenizer_sha256: str
    tensors: dict[str, SourceTensor] = field(repr=False)
    head_tensors: dict[str, tuple[int, ...]] = field(repr=False)  # name -> shape of what every head holds, without its output
    tied: bool
    config_json: str = field(repr=False)
    tap_layer: int = 0  # a layer inside the trunk whose states are kept, too; 0: none
    head_precision: str = ""  # of heads' layers; "" from a server that does not say
    output_precision: str = ""  # of output projections to the vocabulary; with int8, log-probs differ from a trainer's by up to some tenths
    attention: str = ""  # what computes it: "compiled", "torch", or the name of a GPU kernel
    device: str = ""  # the trunk's: "cpu", or a GPU, as in "cuda:0"; "" from a server that does not say
    head_device: str = ""
    tensor_parallel: int = 1  # ranks, processes that share every layer; 0 from a server that does not say


@dataclass(frozen=True, slots=True)
class HeadManifest:
    """head.json: what a head's weights cannot say. Enums by their value in head.json; "" or -1 where it does not apply."""

    kind: HeadKind
    trunk_id: str
    precision: str
    output: str  # "tied", "own", "score"
    base: str  # "policy@3"; with `lora` the version whose weights it runs on
    untrained: bool
    bias: float
    read: str  # "last", "eos", "append"
    append_token_id: int
    unfinished: str  # "read_last", "omit"
    violated_token_id: int
    followed_token_id: int
    template: str
    lora: LoraAdapter | None = None  # the file is an adapter
    scale: float = 1.0  # preference and value: a number is (raw - bias) / scale
    pad_token_id: int = -1  # with "last": passed over at the end, as transformers' ForSequenceClassification passes over its padding

    @property
    def reading(self) -> str:
        """Where a preference head's score is read, for people; empty for the other kinds."""
        if self.kind is not HeadKind.PREFERENCE:
            return ""
        places = {"eos": "the first EOS of the completion, else the last token", "append": f"token {self.append_token_id}, appended"}
        last = f"the last token that is not {self.pad_token_id}" if self.pad_token_id >= 0 else "the last token"
        return places.get(self.read, last)


@dataclass(frozen=True, slots=True)
class HeadVersion:
    """One version of one head."""

    name: str
    version: int  # 0: not stored (validate_only)
    digest: str  # names what is computed: SHA-256 of its file; for a LoRA head of its base and scaling, too
    num_bytes: int  # of its file
    manifest: HeadManifest
    active: bool
    resident: bool  # in memory now
    created_at: float  # seconds since 1970
    labels: tuple[str, ...]
    metrics: dict[str, float] = field(default_factory=dict)  # what its trainer measured
    file_sha256: str = ""

    @property
    def kind(self) -> HeadKind:
        return self.manifest.kind

    @property
    def ref(self) -> str:
        """The reference that other calls take: "policy@7"."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a head version's file."""

    name: str
    dtype: str  # "float32", "bfloat16", "float16"
    shape: tuple[int, ...]
    sha256: bytes  # of its bytes


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of the active set."""

    number: int
    parent: int  # where a rollback from here goes; 0 for the first
    heads: dict[str, int]  # name -> version
    created_at: float  # seconds since 1970
    note: str
    num_pinned_requests: int = 0  # filled by activate and update: requests that go on with an older generation
    num_aborted_requests: int = 0  # filled by activate and update: requests that the change ended
    num_following_requests: int = 0  # filled by activate and update: requests whose samples go on with the new versions
    removed: tuple[str, ...] = ()  # filled by activate and update: versions that the server no longer keeps, "policy@1"
    gone: tuple[str, ...] = ()  # filled by generations: of `heads` what is deleted or damaged; a rollback cannot restore the set
    same_as: int = 0  # filled by generations: the first generation with the same heads; 0 if it is this one
    history_id: str = ""  # names it and all before it: two servers that went apart never share one
    behind: tuple[str, ...] = ()  # filled by activate, update and rollback: replicas that do not serve it yet


@dataclass(frozen=True, slots=True, repr=False)
class PushReport:
    """What became of every tensor that was handed to a push. Its repr is one line."""

    version: int  # 0 with validate_only
    head: HeadVersion
    used: list[str]  # tensors of the new version that were given, under these names
    converted: dict[str, str]  # given name -> the name it is used under, where they differ
    ignored: dict[str, str]  # given name -> why it was not sent
    missing: list[str]  # expected, not given (only with base=; an error otherwise)
    num_trunk_tensors_compared: int = 0
    sent: list[str] = field(default_factory=list)  # of `used`, those that crossed the wire: all, or with base= what differs from it
    num_bytes_sent: int = 0
    removed: tuple[str, ...] = ()  # versions that the server no longer keeps, and deleted: "policy@1"
    num_trunk_tensors_unchanged: int = 0  # of `ignored`: tensors of the trunk that are as they were
    same_file_as: str = ""  # "preference@2": a stored version with the same bytes; empty if there is none

    def __repr__(self) -> str:
        what = self.head.ref if self.version else f"{self.head.name}, not stored"
        return f"<PushReport {what}: {self.summary}>"

    @property
    def summary(self) -> str:
        """For people: what was used, what was left out, where the score is read."""
        num_others = len(self.ignored) - self.num_trunk_tensors_unchanged
        num_same = len(self.used) + len(self.missing) - len(self.sent)
        parts = [f"{len(self.sent)} tensors sent"]
        parts += [f"{num_same} as in the base"] if num_same else []
        parts += [f"{len(self.converted)} renamed"] if self.converted else []
        parts += [f"{self.num_trunk_tensors_unchanged} of the trunk, unchanged"] if self.num_trunk_tensors_unchanged else []
        parts += [f"{num_others} left out"] if num_others else []
        parts += [f"the same bytes as {self.same_file_as}"] if self.same_file_as else []
        parts += [f"read at {self.head.manifest.reading}"] if self.head.manifest.reading else []
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A new version whose bias gives the references a mean of 0, and with scale=True a variance of 1."""

    name: str
    version: int  # the new one
    source: str  # "preference@1": the version with the same weights that was measured
    old_bias: float
    bias: float  # mean raw score of the references
    num_items: int
    std: float  # of their raw scores
    generation: Generation | None  # with activate=True
    scale: float = 1.0  # of the new version: `std` with scale=True, else that of the source


@dataclass(frozen=True, slots=True)
class OodFit:
    """One version of a fit for out-of-distribution scores."""

    name: str
    version: int
    trunk_id: str
    precision: str  # of the trunk that it was made with
    layer: int  # whose states it reads
    pooling: str  # "mean", "last"
    num_prompts: int
    shrinkage: float
    created_at: float  # seconds since 1970
    mean_score: float  # of the prompts it was made from
    std_score: float

    @property
    def ref(self) -> str:
        """The reference that ood= takes: "helpful@2"."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ResidentHead:
    """A head version held in memory."""

    references: tuple[str, ...]  # several if they share one file
    digest: str
    num_bytes: int
    num_leases: int
    active: bool


@dataclass(frozen=True, slots=True)
class ResidentName:
    """What one head name holds in memory."""

    name: str
    active_version: int  # 0: none
    versions: tuple[int, ...]
    num_bytes: int  # of their weights; a file that several names share counts for each
    num_leases: int  # running requests on any of them


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What one rank of a server holds."""

    rank: int
    device: str  # "cpu", or a GPU, as in "cuda:1"
    num_bytes: int  # of its process, or on a GPU what it has taken there


@dataclass(frozen=True, slots=True)
class Status:
    """How the server is doing. Sizes in bytes, times in seconds."""

    generation: int
    active: dict[str, int]
    resident_heads: tuple[ResidentHead, ...]
    trunk_bytes: int
    model_bytes: int  # of one unsplit model
    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_head_blocks: int
    num_filled_head_blocks: int
    store_bytes: int
    disk_free_bytes: int
    last_swap_pause_seconds: float
    damage: str  # what is damaged and how to repair it; empty if all is well
    uptime_seconds: float
    counters: dict[str, int] = field(default_factory=dict)
    memory_budget_bytes: int = 0  # most that weights of heads may take
    head_bytes: int = 0  # what they take now: those being built, and those let go but still in use, included
    resident_names: tuple[ResidentName, ...] = ()
    max_idle_per_name: int = 0  # versions of one name kept in memory that nothing uses, at most
    problems: tuple[str, ...] = ()  # what else in the store is damaged, with its repair; the active set is served all the same
    changes: tuple[str, ...] = ()  # activations and rollbacks under way, and how far each is
    history_id: str = ""  # of the active generation
    primary: str = ""  # whom the server follows, "host:port"; empty: it is a primary
    follow_problem: str = ""  # why it does not follow it now
    ranks: tuple[RankMemory, ...] = ()  # of a server of several; sizes of trunk and heads are those of rank 0's share then


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the servers that hold a history."""

    name: str
    address: str  # "host:port"; empty for a primary that was not told it
    generation: int  # its active one
    state: str  # "serving"; "syncing": it has not caught up since its start; "behind": `error` says why; "lost": it says nothing
    error: str = ""
    primary: bool = False
    silent_seconds: float = 0.0  # since it was heard of


@dataclass(frozen=True, slots=True)
class Configuration:
    """One of the server's versioned configuration files."""

    kind: str  # "rule_set", "rule_template", "recipe", "transcript_format"
    reference: str  # "example-rules@1"
    sha256: str  # of the file
    content: str  # the file, YAML
    rules: tuple[Rule, ...] = ()  # of a rule set, in order
    set_aside: str = ""  # why it cannot be used with this model's tokenizer; "": it is in use
    added: bool = False  # with add_configuration; else it came with the server or with its start


@dataclass(frozen=True, slots=True)
class RuleQuestions:
    """The ids that ask a rule head about each rule, as the server asks them."""

    token_ids: dict[str, list[int]]  # rule id -> ids that follow the dialogue's own; the answer is read at the last of them
    violated_token_id: int  # the answer that says "broken"
    followed_token_id: int
    rule_set: str  # with version; "" for rules by text alone
    template: str  # with version
