"""Builds a folder of deploy/kubernetes as `kubectl kustomize` does, for what these folders use: resources, image tags and patches.

`make test-kubectl` compares it with kubectl's own result.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tests.deploy.yamlfile import read_all, read_one

FIELDS = {"apiVersion", "kind", "resources", "images", "patches"}  # that are understood here


def built(folder: Path) -> list[Any]:
    """The objects of a folder, in the order of its files."""
    told = read_one(folder / "kustomization.yaml")
    if unknown := told.keys() - FIELDS:
        raise ValueError(f"{folder / 'kustomization.yaml'}: not understood here: {sorted(unknown)}")
    objects = []
    for name in told["resources"]:
        path = folder / name
        objects += built(path) if path.is_dir() else read_all(path)
    for patch in told.get("patches", []):
        for change in read_all(folder / patch["path"]):
            index = [identity(each) for each in objects].index(identity(change))
            objects[index] = merged(objects[index], change)
    tags = {image["name"]: image["newTag"] for image in told.get("images", [])}
    for container in (container for each in objects for container in containers(each)):
        name, _, tag = container["image"].partition(":")
        container["image"] = f"{name}:{tags.get(name, tag)}"
    return objects


def identity(found: Any) -> tuple[str, str]:
    return found["kind"], found["metadata"]["name"]


def containers(found: Any) -> list[Any]:
    """Of the pods that an object makes."""
    pod = found.get("spec", {}).get("template", {}).get("spec", {})
    return list(pod.get("containers", []))


def merged(found: Any, change: Any) -> Any:
    """Strategic merge: mappings key by key, lists of named things by their name, anything else replaced; None removes."""
    if isinstance(found, dict) and isinstance(change, dict):
        kept = {key: merged(value, change[key]) if key in change else copy.deepcopy(value) for key, value in found.items()}
        return {key: value for key, value in {**change, **kept}.items() if value is not None}
    if is_named(found) and is_named(change):
        changes = {each["name"]: each for each in change}
        kept_names = {each["name"] for each in found}
        return [each for each in change if each["name"] not in kept_names] + [merged(each, changes.get(each["name"], {})) for each in found]
    return copy.deepcopy(change)


def is_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value)
