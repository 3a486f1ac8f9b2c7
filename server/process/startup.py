"""Puts a server's parts together: model, store, engine, heads. Blocks for seconds; knows nothing of listening and signals."""

from __future__ import annotations

from pathlib import Path

import torch

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import HeadKind, model_output
from polyhead.heads.format.precision import Precision
from polyhead.heads.model import embedded
from polyhead.heads.model.checkpoint import Checkpoint, resolve_folder
from polyhead.heads.model.family import initial_head
from polyhead.heads.model.spec import ModelSpec, describe, trunk_id
from polyhead.heads.store.io_errors import StoreIoError
from polyhead.heads.store.store import HeadStore
from polyhead.server.config import ServeConfig
from polyhead.server.engine.layers.cuda.threads import use_device
from polyhead.server.host.pacing import Pacer, has_spare_core
from polyhead.server.metrics.metrics import HeadInfo, Metrics, ServerFacts
from polyhead.server.ood.fits import OodFits, TrunkLayers
from polyhead.server.ood.store import OodStore
from polyhead.server.process import loading
from polyhead.server.process.loading import Loaded, Progress
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
from polyhead.server.versions.manifests import RuleDefaults, ServedTrunk
from polyhead.server.versions.publisher import MAX_PUSHES, Publisher
from polyhead.server.versions.registry import Registry
from polyhead.server.versions.residency import Residency


def build_services(config: ServeConfig, metrics: Metrics, workers: Workers, progress: Progress) -> Services:
    """Everything but the active set, which `bring_up_heads` loads once the engine runs. PolyheadError says what cannot be."""
    loading.check_devices(config)
    use_device(torch.device(config.device))
    store_folder = config.store_dir  # fails for a user without a home folder: before the trunk is hashed
    folder = _model_folder(config, progress)
    progress("reading the model's description")
    checkpoint = Checkpoint.open(folder)
    spec = describe(checkpoint, config.split_layer or None)
    loading.check_dtypes(config, spec)
    _check_shares(config, spec)
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
    loaded = _load(config, checkpoint, spec, eos_ids, progress)
    engine = loaded.engine
    served = ServedTrunk(spec, identity, config.trunk_dtype, _rule_defaults(rules))
    tokenizer.report_chat(eos_ids)
    num_threads = engine.num_threads * config.tensor_parallel if config.device == "cpu" else 1
    workers.pause = Pacer(lambda: engine.is_idle, has_spare_core(num_threads))
    residency = Residency(loaded.head_budget, config.max_idle_per_name, engine.leased_digests, engine.drop_head)
    cache = HeadCache(store, served, loaded.loader, engine, residency)
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
        trunk=loaded.trunk,
        trunk_id=identity,
        eos_ids=eos_ids,
        max_context=loading.served_context(config, spec),
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


def _check_shares(config: ServeConfig, spec: ModelSpec) -> None:
    """Refuse a model that cannot be split over ranks, before a byte of it is read."""
    if config.tensor_parallel > 1:
        from polyhead.server.parallel.shares import check_shares

        check_shares(spec, config.tensor_parallel)


def _load(config: ServeConfig, checkpoint: Checkpoint, spec: ModelSpec, eos_ids: frozenset[int], progress: Progress) -> Loaded:
    if config.tensor_parallel == 1:
        return loading.load(config, checkpoint, spec, eos_ids, progress)
    from polyhead.server.parallel.start import load  # one process imports nothing of it

    return load(config, checkpoint, spec, eos_ids, progress)


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


def _model_folder(config: ServeConfig, progress: Progress) -> Path:
    return resolve_folder(config.model) if config.model else embedded.prepare(progress)


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
