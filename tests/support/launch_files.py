"""The files under `deploy/` that a user copies, parsed, and the published schemas they have to fit."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from deploy.cluster_config import ClusterConfig
from deploy.cluster_file import read_cluster

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"
COMPOSE = DEPLOY / "compose"
SCHEMAS = ROOT / "tests/data/schemas"
OWN_SCHEMAS = {"RayCluster": "raycluster-v1.json", "RayJob": "rayjob-v1.json"}


def documents(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file."""
    return documents_of(path.read_text(encoding="utf-8"))


def documents_of(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def document(path: Path) -> dict[str, Any]:
    (only,) = documents(path)
    return only


KUBERAY_FILES = sorted(path for path in KUBERAY.rglob("*.yaml") if path.name != "kustomization.yaml")
KUBERAY_OBJECTS = [thing for path in KUBERAY_FILES for thing in documents(path)]
KUBERAY_REDIS_URL = "redis://:secret@diptych-valkey:6379/0"  # as the head's environment has it, for a password "secret"


def kuberay_object(kind: str, name: str) -> dict[str, Any]:
    """A copy."""
    (found,) = (thing for thing in KUBERAY_OBJECTS if (thing["kind"], thing["metadata"]["name"]) == (kind, name))
    return copy.deepcopy(found)


def kuberay_config() -> ClusterConfig:
    """As `diptych up` on the head reads it, with the address that comes from the environment."""
    return read_cluster(KUBERAY / "cluster.toml", {"redis_url": KUBERAY_REDIS_URL}, "")


def kubernetes_errors(thing: dict[str, Any]) -> list[str]:
    """What its kind's schema has against an object of Kubernetes or KubeRay; a kind that has none here is an error."""
    kind = thing["kind"]
    if kind in OWN_SCHEMAS:
        assert thing["apiVersion"] == "ray.io/v1"
        return schema_errors(thing, schema(OWN_SCHEMAS[kind]))
    core = schema("kubernetes.json")
    return schema_errors(thing, {"$ref": f"#/$defs/{core['kinds'][kind]}", "$defs": core["$defs"]})


def schema_errors(thing: Any, schema: dict[str, Any]) -> list[str]:
    found = Draft202012Validator(schema).iter_errors(thing)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@cache
def schema(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    return read


def pod_specs(thing: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of an object, the pods it makes, by name."""
    spec = thing["spec"]
    match thing["kind"]:
        case "RayCluster":
            groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
            return {name: each["template"]["spec"] for name, each in ({"head": spec["headGroupSpec"]} | groups).items()}
        case "RayJob":
            return {"submitter": spec["submitterPodTemplate"]["spec"]}
        case "Deployment":
            return {thing["metadata"]["name"]: spec["template"]["spec"]}
    return {}


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env", ())}


def seconds(duration: str) -> float:
    """Of a duration in compose, such as "100s" or "2m"."""
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]
