"""The rows that `polyhead heads show` prints about one version."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from polyhead.client.cli.session import human_bytes
from polyhead.client.results.records import Generation, HeadManifest, HeadVersion
from polyhead.client.results.results import HeadKind

__all__ = ["moment", "shown"]

_READS = {"last": "the last token", "eos": "the first end-of-sequence token", "append": "a token that is appended to the completion"}


def moment(seconds: float) -> str:
    """Local time of a moment in seconds since 1970; "-" for none."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def shown(head: HeadVersion, generations: Sequence[Generation]) -> dict[str, str]:
    """Rows by name, without those that do not apply. `generations` are those that it is or was active in, newest first."""
    manifest = head.manifest
    states = {"active": head.active, "in memory": head.resident, "untrained": manifest.untrained}
    rows = {
        "head": head.ref,
        "kind": f"{head.kind.value}, {_OUTPUTS.get(manifest.output, manifest.output)}",
        "state": ", ".join(name for name, applies in states.items() if applies) or "stored",
        "made": moment(head.created_at),
        "size": human_bytes(head.num_bytes),
        "labels": ", ".join(head.labels) or "none",
        "metrics": ", ".join(f"{name} {value:g}" for name, value in sorted(head.metrics.items())) or "none",
        "base": _base(manifest),
        "trained on": f"trunk {manifest.trunk_id[:12]}, {manifest.precision}",
        **(_scalar_rows(manifest) if head.kind in (HeadKind.PREFERENCE, HeadKind.VALUE) else {}),
        **(_preference_rows(manifest) if head.kind is HeadKind.PREFERENCE else {}),
        **(_rule_rows(manifest) if head.kind is HeadKind.RULE else {}),
        "digest": head.digest,
        "active in": "; ".join(_generation(each) for each in generations) or "no generation",
    }
    return {name: value for name, value in rows.items() if value}


_OUTPUTS = {"tied": "output projection tied to the trunk's embedding", "own": "output projection of its own", "score": "scalar output"}


def _base(manifest: HeadManifest) -> str:
    if manifest.lora is not None:
        return f"{manifest.base}, under a LoRA adapter of rank {manifest.lora.rank}, alpha {manifest.lora.alpha:g}"
    return manifest.base


def _scalar_rows(manifest: HeadManifest) -> dict[str, str]:
    return {
        "bias": f"{manifest.bias:g}, subtracted from the raw score",
        "scale": f"{manifest.scale:g}, divides the score after the bias is subtracted",
    }


def _preference_rows(manifest: HeadManifest) -> dict[str, str]:
    appended = f", {manifest.append_token_id}" if manifest.read == "append" else ""
    return {
        "read": f"{manifest.read}{appended}: {_READS.get(manifest.read, 'unknown to this client')}",
        "unfinished": f"{manifest.unfinished}, for samples that did not end by themselves",
    }


def _rule_rows(manifest: HeadManifest) -> dict[str, str]:
    return {
        "template": manifest.template,
        "answers": f"token {manifest.violated_token_id}: broken, token {manifest.followed_token_id}: followed",
    }


def _generation(generation: Generation) -> str:
    return f"{generation.number} ({generation.note})" if generation.note else str(generation.number)
