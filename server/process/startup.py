"""Puts a server's parts together: model, store, engine, heads. Blocks for seconds; knows nothing of listening and signals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import HeadKind, model_output
from polyhead.heads.format.precision import Precision
from polyhead.heads.model import embedded
from polyhead.heads.model.checkpoint import Checkpoint, resolve_folder
from polyhead.heads.model.composition import check_composition
from polyhead.heads.model.family import TrunkModule, build_head, build_trunk, initial_head
from polyhead.heads.model.spec import ModelSpec, describe, trunk_id
from polyhead.heads.store.io_errors import StoreIoError
from polyhead.heads.store.store import HeadStore
from polyhead.server.config import ServeConfig
from polyhead.server.engine import build
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers.cuda.eight_bit import has_fp8
from polyhead.server.engine.layers.cuda.threads import use_device
from polyhead.server.engine.layers.linears import Quantization
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.host.cgroups import memory_left
from polyhead.server.host.pacing import Pacer, has_spare_core
from polyhead.server.metrics.metrics import HeadInfo, Metrics, ServerFacts
from polyhead.server.ood.fits import OodFits, TrunkLayers
from polyhead.server.ood.store import OodStore
from polyhead.server.process.services import Services
from polyhead.server.process.workers import Workers
from polyhead.server.rewards.configuration_store import ConfigurationStore
from polyhead.server.rewards.configurations import Book, ConfigurationKind
from polyhead.server.rewards.library import Library
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rewards.rules import RuleBook
from polyhead.server.text.tokenizer import Tokenizer
from polyhead.server.text.tokenizer_files import read_eos_ids
from polyhead.server.text.transcripts import TranscriptBook
from polyhead.server.versions.following import FollowState
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.head_loader import HeadLoader
from polyhead.server.versions.manifests import RuleDefaults, ServedTrunk
from polyhead.server.versions.publisher import MAX_PUSHES, Publisher
from polyhead.server.versions.registry import Registry
from polyhead.server.versions.residency import Residency

Progress = Callable[[str], None]
DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
QUANTIZATIONS: dict[Precision, Quantization] = {Precision.INT8: "int8", Precision.FP8: "fp8"}
DEFAULT_THREADS = torch.get_num_threads()  # torch's own choice, read at import: a worker thread would answer the 1 that it set itself
FREE_SHARE = 0.75  # of the memory left, for heads, when no budget is given


def build_services(config: ServeConfig, metrics: Metrics, workers: Workers, progress: Progress) -> Services:
    """Everything but the active set, which `bring_up_heads` loads once the engine runs. PolyheadError says what cannot be."""
    check_devices(config)
    use_device(torch.device(config.device))
    store_folder = config.store_dir  # fails for a user without a home folder: before the trunk is hashed
    folder = _model_folder(config, progress)
    progress("reading the model's description")
    checkpoint = Checkpoint.open(folder)
    spec = describe(checkpoint, config.split_layer or None)
    _check_dtypes(config, spec)
    progress("hashing the trunk")
    identity = trunk_id(checkpoint, spec)
    # before the weights are read: a second server on this store fails at once. Room for twice as many uploads as may run
    store = _open_store(store_folder, identity)
    try:
        return _build(config, checkpoint, spec, identity, store, metrics, workers, progress)
    except BaseException:
        store.close()
        raise


def _open_store(folder: Path, trunk_id: str) -> HeadStore:
    try:
        return HeadStore.open(folder, trunk_id, max_staged=2 * MAX_PUSHES)
    except StoreIoError as error:
        raise FailedPrecondition(f"{error.message}: {folder}\nhint: name a folder that this user may write to: --store DIR") from None


def _build(
    config: ServeConfig,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    identity: str,
    store: HeadStore,
    metrics: Metrics,
    workers: Workers,
    progress: Progress,
) -> Services:
    tokenizer = Tokenizer.load(checkpoint.folder, spec.vocab_size)  # small files first: their errors come at once
    eos_ids = read_eos_ids(checkpoint)
    rules, recipes = RuleBook(tokenizer, config.rules, spec.vocab_size), RecipeBook(config.recipes)
    formats = TranscriptBook(tokenizer, config.formats)
    progress(f"loading the trunk: layers 0 to {spec.split_layer - 1} of {spec.num_layers}")
    trunk = build_trunk(checkpoint, spec, computed_in(config.trunk_dtype, config.device), loaded_to(config))
    progress("checking that trunk and head make the unsplit model")
    _check_split(checkpoint, spec, trunk)
    max_context = min(config.max_context or spec.context_length, spec.context_length)
    engine = build_engine(config, trunk, eos_ids, max_context)
    served = ServedTrunk(spec, identity, config.trunk_dtype, _rule_defaults(rules))
    tokenizer.report_chat(eos_ids)
    workers.pause = Pacer(lambda: engine.is_idle, has_spare_core(engine.num_threads if config.device == "cpu" else 1))
    cache = build_head_cache(config, served, store, engine)
    library = Library(ConfigurationStore(store), _books(rules, recipes, formats), lambda *key: _rule_heads_of(store, *key))
    registry = Registry(store, served, cache, engine, keep_versions=config.keep_versions, on_swap=metrics.observe_swap)
    trunk_sources = frozenset(spec.trunk_sources)
    publisher = Publisher(
        store,
        served,
        cache,
        lambda name: checkpoint.sha256(name) if name in trunk_sources else None,
        lambda: registry.active,
    )
    layers = TrunkLayers(identity, config.trunk_dtype, spec.split_layer, engine.trunk.tap_layer)
    services = Services(
        config=config,
        spec=spec,
        checkpoint=checkpoint,
        trunk=trunk,
        trunk_id=identity,
        eos_ids=eos_ids,
        max_context=max_context,
        tokenizer=tokenizer,
        rules=rules,
        formats=formats,
        recipes=recipes,
        engine=engine,
        store=store,
        registry=registry,
        publisher=publisher,
        metrics=metrics,
        workers=workers,
        library=library,
        ood=OodFits(OodStore(store, config.keep_versions), layers),
        following=FollowState(config.follow, problem="it has not been reached yet") if config.follow else None,
    )
    metrics.engine.connect(engine.snapshot, lambda: head_infos(registry, config.trunk_dtype), lambda: server_facts(services))
    return services


def build_engine(config: ServeConfig, trunk: TrunkModule, eos_ids: frozenset[int], max_context: int) -> Engine:
    """An engine with empty caches and no heads, not started.

    The number of threads is always set: a new thread would take over the 1 that worker threads have set.
    """
    limits = QueueLimits(config.max_queue_requests, config.max_queue_tokens, config.interactive_share)
    sizes = build.EngineConfig(
        cache_bytes=config.cache_bytes,
        max_context=max_context,
        is_fast=config.layers == "fast",
        trunk_quantization=QUANTIZATIONS.get(config.trunk_dtype, "none"),
        head_quantization=QUANTIZATIONS.get(config.head_dtype, "none"),
        output=_output_form(config),
        is_deterministic=config.deterministic,
        has_graphs=config.cuda_graphs,
        device=torch.device(config.device) if config.device != loaded_to(config) else None,
        head_device=torch.device(config.heads_on) if config.has_heads_apart else None,
        num_threads=config.threads or DEFAULT_THREADS,
        tap_layer=config.tap_layer,
        queue=limits,
    )
    return build.build_engine(trunk, sizes, eos_ids, computed_in(config.head_dtype, config.device))


def build_head_cache(config: ServeConfig, served: ServedTrunk, store: HeadStore, engine: Engine) -> HeadCache:
    """Loads stored heads into memory, within the memory budget."""
    heads, dtype = engine.heads, computed_in(config.head_dtype, config.device)
    loader = HeadLoader(
        served.spec, heads.tied_embedding, dtype, heads.device, heads.prepare, heads.weight_bytes, _output_dtype(config), heads.uploads
    )
    budget = config.memory_budget or head_budget(config)
    return HeadCache(store, served, loader, engine, Residency(budget, config.max_idle_per_name, engine.leased_digests, engine.drop_head))


def head_budget(config: ServeConfig) -> int:
    """Bytes for heads, of the memory of their device that is free when trunk and caches are there.

    A GPU's caches are taken when they are made; on the CPU their pages are taken later.
    """
    promised = 0 if config.device.startswith("cuda") else config.cache_bytes
    return int(max(0, free_memory(config.heads_on) - promised) * FREE_SHARE)


def bring_up_heads(services: Services, progress: Progress) -> None:
    """Restore the stored active set, or make the first one, unless that is a primary's to do. DataLoss if the stored one is damaged."""
    progress("loading the active heads")
    if not services.registry.restore() and services.following is None:
        progress("making the first five heads from the model's own layers")
        spec = services.spec
        output = model_output(HeadKind.POLICY, tied=spec.tied)
        services.registry.bootstrap(initial_head(services.checkpoint, spec, output))


def head_infos(registry: Registry, precision: Precision) -> list[HeadInfo]:
    return [
        HeadInfo(head.name, head.version, head.manifest.kind.value, head.live.digest, head.manifest.precision != precision)
        for head in registry.active.heads.values()
    ]


def server_facts(services: Services) -> ServerFacts:
    """For the metrics, at each scrape."""
    residency, (free, size) = services.registry.residency, services.store.disk_space()
    followers, following = services.registry.consent.report(), services.following
    return ServerFacts(
        trunk_bytes=services.trunk_bytes,
        resident_head_bytes=residency.num_bytes,
        head_budget_bytes=residency.budget,
        generation=services.registry.active.generation,
        is_damaged=bool(services.registry.damage),
        num_damaged_files=len(services.store.other_damage),
        disk_free_bytes=free,
        disk_size_bytes=size,
        attention=services.attention,
        device=services.config.device,
        head_device=services.config.heads_on,
        cache_bytes=services.cache_bytes,
        followers=followers.num_by_state,
        most_behind=followers.most_behind,
        is_following=following is None or (following.has_caught_up and not following.problem),
    )


def _output_dtype(config: ServeConfig) -> torch.dtype | None:
    """Dtype of output projections, if one is set. 8-bit outputs on a GPU compute in the head's dtype."""
    if config.output_dtype is None:
        return None
    is_eight_bit = config.output_dtype in QUANTIZATIONS
    return computed_in(config.head_dtype if is_eight_bit and config.device != "cpu" else config.output_dtype, config.device)


def _output_form(config: ServeConfig) -> build.OutputForm | None:
    dtype = _output_dtype(config)
    if config.output_dtype is None or dtype is None:
        return None
    return build.OutputForm(QUANTIZATIONS.get(config.output_dtype, "none"), dtype)


def computed_in(precision: Precision, device: str) -> torch.dtype:
    """What layers compute in, with weights held at this precision: beside 8 bits, float32 on the CPU and bfloat16 on a GPU."""
    return DTYPES.get(precision, torch.float32 if device == "cpu" else torch.bfloat16)


def loaded_to(config: ServeConfig) -> str:
    """Device of the trunk's weights until layers are packed: a trunk that becomes 8 bits on a GPU must not be there whole in 16."""
    return "cpu" if config.trunk_dtype in QUANTIZATIONS and config.layers == "fast" else config.device


def free_memory(device: str) -> int:
    """Bytes that can be had now: of the GPU, or of the machine within the limits of its control groups."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what torch keeps of the trunk's 16-bit layers once they are 8 bits
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return min([free, *memory_left()])


def _model_folder(config: ServeConfig, progress: Progress) -> Path:
    return resolve_folder(config.model) if config.model else embedded.prepare(progress)


def check_devices(config: ServeConfig) -> None:
    """FailedPrecondition names the one that is not there."""
    for field, name in (("device", config.device), ("head_device", config.heads_on)):
        _check_device(field, name)


def _check_device(field: str, name: str) -> None:
    device = torch.device(name)
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise FailedPrecondition(f"torch {torch.__version__} finds no CUDA device that it can use\nhint: --device cpu", field=field)
    if (device.index or 0) >= torch.cuda.device_count():
        hint = "\nhint: leave out --head-device, and heads share the trunk's" if field == "head_device" else ""
        raise FailedPrecondition(f"no such device: {name} (torch finds {torch.cuda.device_count()} GPUs){hint}", field=field)


def _check_dtypes(config: ServeConfig, spec: ModelSpec) -> None:
    heads_on = config.heads_on
    named = (
        ("trunk_dtype", config.trunk_dtype, config.device),
        ("head_dtype", config.head_dtype, heads_on),
        ("output_dtype", config.output_dtype, heads_on),
    )
    for field, precision, device in named:
        if precision is Precision.FP8 and not has_fp8(torch.device(device)):
            raise FailedPrecondition(f"{field} fp8 needs a GPU of compute capability 8.9 or later\nhint: use int8", field=field)
    if spec.tied and computed_in(config.head_dtype, config.device) != computed_in(config.trunk_dtype, config.device):
        raise FailedPrecondition(
            f"heads of this model share the trunk's embedding and its dtype: {config.head_dtype} is not {config.trunk_dtype}\n"
            "hint: give --head-dtype the value of --trunk-dtype"
        )


def _check_split(checkpoint: Checkpoint, spec: ModelSpec, trunk: TrunkModule) -> None:
    output = model_output(HeadKind.POLICY, tied=spec.tied)
    embedding = trunk.embedding if spec.tied else None
    tensors = initial_head(checkpoint, spec, output)
    check_composition(trunk, build_head(spec, tensors, output, embedding, trunk.embedding.dtype, trunk.embedding.device))


def _rule_defaults(rules: RuleBook) -> RuleDefaults:
    return RuleDefaults(rules.default_template, rules.answers)


def _books(rules: RuleBook, recipes: RecipeBook, formats: TranscriptBook) -> dict[ConfigurationKind, Book]:
    return {
        ConfigurationKind.RULE_SET: rules,
        ConfigurationKind.RULE_TEMPLATE: rules,
        ConfigurationKind.RECIPE: recipes,
        ConfigurationKind.TRANSCRIPT_FORMAT: formats,
    }


def _rule_heads_of(store: HeadStore, kind: ConfigurationKind, reference: str) -> list[str]:
    """Rule heads that use this template."""
    if kind is not ConfigurationKind.RULE_TEMPLATE:
        return []
    records = (record for name in store.names() for record in store.versions(name))
    return [f"{record.name}@{record.version}" for record in records if record.manifest.template == reference]
