"""Fills in what a push leaves out of its manifest, and checks it against the served trunk. Knows no weights and no store."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import KINDS, SCORE_NAME, HeadKind, OutputKind, ReadPosition, Unfinished
from polyhead.heads.format.lora import LoraAdapter
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.precision import Precision
from polyhead.heads.model.spec import ModelSpec

TOKEN_FIELDS = tuple(name for kind in KINDS.values() for name in kind.manifest_fields if name.endswith("_token_id"))


@dataclass(frozen=True, slots=True)
class ManifestPatch:
    """A manifest as a caller gives it: None means "as before"."""

    kind: HeadKind | None = None
    trunk_id: str | None = None
    precision: Precision | None = None
    output: OutputKind | None = None
    base: str | None = None
    untrained: bool = False  # never taken over: pushed weights were trained unless the caller says otherwise
    bias: float | None = None
    scale: float | None = None
    read: ReadPosition | None = None
    append_token_id: int | None = None
    pad_token_id: int | None = None  # -1: none
    unfinished: Unfinished | None = None
    violated_token_id: int | None = None
    followed_token_id: int | None = None
    template: str | None = None
    lora: LoraAdapter | None = None  # never taken over, as `base`: they say how this file is read


@dataclass(frozen=True, slots=True)
class RuleDefaults:
    """What a rule head asks with when its manifest does not say."""

    template: str  # "example-rule-prompt@2"
    answers: Mapping[str, tuple[int, int]]  # by template: the tokens that say "broken" and "followed"; none for one that is not served


@dataclass(frozen=True, slots=True)
class ServedTrunk:
    """The facts that manifests are compared with."""

    spec: ModelSpec
    trunk_id: str
    precision: Precision
    rule: RuleDefaults

    def new_manifest(self, kind: HeadKind, output: OutputKind, *, untrained: bool = False) -> HeadManifest:
        """A head of this trunk with nothing else said."""
        plain = HeadManifest(
            kind=kind,
            trunk_id=self.trunk_id,
            split_layer=self.spec.split_layer,
            num_layers=self.spec.num_layers,
            output=output,
            precision=self.precision,
            untrained=untrained,
        )
        return self.with_rule_defaults(plain)

    def with_rule_defaults(self, manifest: HeadManifest) -> HeadManifest:
        if manifest.kind is not HeadKind.RULE:
            return manifest
        template = manifest.template or self.rule.template
        violated, followed = self.rule.answers.get(template, (-1, -1))
        return dataclasses.replace(
            manifest,
            violated_token_id=violated if manifest.violated_token_id < 0 else manifest.violated_token_id,
            followed_token_id=followed if manifest.followed_token_id < 0 else manifest.followed_token_id,
            template=template,
        )

    def complete(self, patch: ManifestPatch, before: HeadManifest | None, names: Collection[str]) -> HeadManifest:
        """The manifest of a pushed file with these tensor names; for an adapter `before` is its base's.

        InvalidArgument or FailedPrecondition name the field.
        """
        self.check_trunk(patch.trunk_id)
        kind = patch.kind or (before.kind if before is not None else None)
        if kind is None:
            raise InvalidArgument("the first version of a name needs its kind", field="header.manifest.kind")
        if patch.lora is None or before is None:
            output, untrained = patch.output or self.output_of(names), patch.untrained
        else:  # an adapter has no output of its own: it reads the one of its base
            output, untrained = patch.output or before.output, patch.untrained or before.untrained
        plain = self.new_manifest(kind, output, untrained=untrained)
        if before is not None:
            plain = dataclasses.replace(
                before, kind=kind, output=output, precision=self.precision, untrained=untrained, base="", lora=None
            )
        if patch.template not in (None, plain.template):  # another question has answers of its own
            plain = dataclasses.replace(plain, violated_token_id=-1, followed_token_id=-1)
        given = {
            field.name: value
            for field in dataclasses.fields(patch)
            if field.name != "untrained" and (value := getattr(patch, field.name)) is not None
        }
        return self.check(self.with_rule_defaults(dataclasses.replace(plain, **given)))

    def check(self, manifest: HeadManifest) -> HeadManifest:
        """The manifest, valid in itself and for this vocabulary."""
        manifest.validate()
        for name in TOKEN_FIELDS:
            if (token := getattr(manifest, name)) >= self.spec.vocab_size:
                raise InvalidArgument(
                    f"{name} is outside the vocabulary of {self.spec.vocab_size}: {token}", field=f"manifest.{name}"
                )
        return manifest

    def check_trunk(self, trunk_id: str | None) -> None:
        if trunk_id is not None and trunk_id != self.trunk_id:
            raise FailedPrecondition(
                f"the head was made for another trunk: {trunk_id[:64]!r}, served is {self.trunk_id!r}",
                field="header.manifest.trunk_id",
                metadata={"trunk_id": self.trunk_id},
            )

    def output_of(self, names: Collection[str]) -> OutputKind:
        """What the file itself says about its output projection."""
        own = self.spec.output_names or ("lm_head.weight",)
        if SCORE_NAME in names:
            return OutputKind.SCORE
        return OutputKind.OWN if own[0] in names or not self.spec.tied else OutputKind.TIED
