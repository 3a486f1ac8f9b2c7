"""Builds a folder of deploy/kubernetes as `kubectl kustomize` does, for what these folders use: resources, components,
image tags and patches.

`make test-kubectl` compares it with kubectl's own result.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tests.deploy.yamlfile import read_all, read_one

FIELDS = {"apiVersion", "kind", "resources", "components", "images", "patches"}  # that are understood here


def built(folder: Path) -> list[Any]:
    """The objects of a folder, in the order of its files."""
    return _changed([], folder)


def _changed(before: list[Any], folder: Path) -> list[Any]:
    """What a folder makes of the objects that are there: it adds its own, then its components and its patches change all of them."""
    told = read_one(folder / "kustomization.yaml")
    if unknown := told.keys() - FIELDS:
        raise ValueError(f"{folder / 'kustomization.yaml'}: not understood here: {sorted(unknown)}")
    objects = list(before)
    for name in told.get("resources", []):
        path = folder / name
        objects += built(path) if path.is_dir() else read_all(path)
    for name in told.get("components", []):
        objects = _changed(objects, folder / name)
    for patch in told.get("patches", []):
        for change in read_all(folder / patch["path"]):
            chosen = [index for index, each in enumerate(objects) if _is_meant(each, change, patch.get("target"))]
            assert chosen, f"{folder / patch['path']} changes nothing"
            for index in chosen:
                objects[index] = merged(objects[index], _named_as(objects[index], change))
    tags = {image["name"]: image["newTag"] for image in told.get("images", [])}
    for container in (container for each in objects for container in containers(each)):
        name, _, tag = container["image"].partition(":")
        container["image"] = f"{name}:{tags.get(name, tag)}"
    return objects


def _is_meant(found: Any, change: Any, target: Any) -> bool:
    """A target picks by kind and by one label; without one, a patch names its object."""
    if target is None:
        return identity(found) == identity(change)
    label, _, values = target["labelSelector"].partition(" in ")
    return found["kind"] in target["kind"].split("|") and found["metadata"].get("labels", {}).get(label) in values.strip("()").split(", ")


def _named_as(found: Any, change: Any) -> Any:
    """A patch with a target leaves kind and name as they are."""
    return {**change, "kind": found["kind"], "metadata": {**change["metadata"], "name": found["metadata"]["name"]}}


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
