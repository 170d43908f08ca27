"""Makes the schemas beside it out of what their projects publish: what no test asks for is left out.

    python tests/data/schemas/vendor.py CRDS KUBERNETES COMPOSE

CRDS: `ray-operator/config/crd/bases` of KubeRay. KUBERNETES: `_definitions.json` in a folder
`kubernetes-json-schema/VERSION-local-strict` of the wheel `kubernetes-validate`. COMPOSE: `schema/compose-spec.json` of
the Compose Specification.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
DOCUMENTATION = ("description", "title", "examples", "deprecated")
KUBERNETES_KINDS = {
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "Secret": "io.k8s.api.core.v1.Secret",
    "Service": "io.k8s.api.core.v1.Service",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
SHARED_FROM = 200  # bytes of JSON; a part that occurs twice and is longer is written once


def main(crds: Path, kubernetes: Path, compose: Path) -> None:
    write("raycluster-v1.json", deduplicated(crd(crds / "ray.io_rayclusters.yaml")))
    ray_job = crd(crds / "ray.io_rayjobs.yaml")
    del ray_job["properties"]["spec"]["properties"]["rayClusterSpec"]  # ours selects a cluster that has its own file
    write("rayjob-v1.json", deduplicated(ray_job))
    definitions = json.loads(kubernetes.read_text(encoding="utf-8"))["$defs"]
    write("kubernetes.json", reachable(definitions, KUBERNETES_KINDS))
    write("compose-spec.json", bare(json.loads(compose.read_text(encoding="utf-8"))))


def crd(path: Path) -> dict[str, Any]:
    """The schema of version v1. An object takes no other fields than those that are named, as `kubectl` has it."""
    versions = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")
    schema["properties"] |= {"metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    del schema["properties"]["status"]
    closed: dict[str, Any] = close(bare(schema))
    return closed


def bare(schema: Any) -> Any:
    """Without prose. What is called like a field of documentation may also be a property: a dict, never text."""
    if isinstance(schema, dict):
        return {
            name: bare(value)
            for name, value in schema.items()
            if not (name in DOCUMENTATION and not isinstance(value, dict))
        }
    return [bare(each) for each in schema] if isinstance(schema, list) else schema


def close(schema: Any) -> Any:
    """OpenAPI's structural schemas as JSON Schema: closed objects, and integers that may be text where they say so."""
    if isinstance(schema, list):
        return [close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: close(value) for name, value in schema.items() if not name.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    is_map = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_map:
        made["additionalProperties"] = False
    return made


def deduplicated(schema: dict[str, Any]) -> dict[str, Any]:
    seen: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict):
            seen[json.dumps(node, sort_keys=True)] += 1
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            count(child)

    count(schema)
    names = {
        text: f"s{index}" for index, text in enumerate(t for t, n in seen.items() if n > 1 and len(t) > SHARED_FROM)
    }
    shared: dict[str, Any] = {}

    def short(node: Any, *, inside: bool = False) -> Any:
        if isinstance(node, list):
            return [short(each) for each in node]
        if not isinstance(node, dict):
            return node
        name = names.get(json.dumps(node, sort_keys=True))
        if name is None or inside or not is_schema(node):
            return {key: short(value) for key, value in node.items()}
        if name not in shared:
            shared[name] = None
            shared[name] = short(node, inside=True)
        return {"$ref": f"#/$defs/{name}"}

    return short(schema) | {"$defs": shared}


def is_schema(node: dict[str, Any]) -> bool:
    """A schema, and not a table of properties."""
    return isinstance(node.get("type"), str) or "anyOf" in node


def reachable(definitions: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    wanted, kept = list(kinds.values()), {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = bare(definitions[name])
            text = json.dumps(kept[name])
            wanted += [part.split('"')[0] for part in text.split("#/$defs/")[1:]]
    return {"kinds": kinds, "$defs": dict(sorted(kept.items()))}


def write(name: str, schema: Any) -> None:
    (HERE / name).write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
