"""Grafana's panels and Prometheus' rules: every name and label in them is one that a router really exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from launch_files import COMPOSE, document
from prometheus_client import CollectorRegistry

from deploy.cluster_file import read_cluster
from diptych.messages import Role, WorkerRecord, WorkerState, WorkerStats
from router.metrics import OUTCOMES, RequestMetrics
from router.placement import LOCAL_REASONS
from router.placement_metrics import PlacementCollector, PlacementMetrics
from router.worker_metrics import WorkerCollector

DASHBOARD = json.loads((COMPOSE / "grafana/dashboards/diptych.json").read_text(encoding="utf-8"))
RULES = [rule for group in document(COMPOSE / "prometheus/alerts.yml")["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]

SAMPLE = r"(?<![\w:])(?:diptych_|vllm:)\w+"
# Of Prometheus itself: whether a scrape succeeded, and the labels of a target.
SCRAPE_LABELS = {"job", "instance", "le"}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of each sample that a router with one worker of each role exports."""
    registry = CollectorRegistry()
    RequestMetrics(registry, "tiny")
    placed = PlacementMetrics(registry, "tiny")
    ready = {role: [role.value] for role in Role}
    registry.register(PlacementCollector(placed, "tiny", ready.__getitem__, lambda: 1.0, lambda: 0.0))
    stats = WorkerStats(running_by_kind={"local": 1}, waiting_by_kind={"local": 1})
    registry.register(WorkerCollector(lambda: [(record(role), stats) for role in Role]))
    labels: dict[str, set[str]] = {}
    for family in registry.collect():
        if family.type == "histogram":
            labels |= {f"{family.name}{end}": {"model_name", "le"} for end in ("_bucket", "_sum", "_count")}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    labels.setdefault("vllm:request_success_total", {"model_name", "finished_reason"})  # none has succeeded yet
    return labels


def record(role: Role) -> WorkerRecord:
    return WorkerRecord(
        worker_id=role.value,
        role=role,
        address="127.0.0.1:1",
        state=WorkerState.READY,
        model="tiny",
        fingerprint="f",
        block_size=16,
        num_blocks=64,
        block_bytes=1,
        max_context=256,
        started_at=0.0,
    )


def selectors(expression: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Each sample that an expression asks for, with the values that it wants of labels."""
    for match in re.finditer(rf"({SAMPLE})(?:\{{([^}}]*)\}})?", expression):
        wanted = re.findall(r"(\w+)\s*=~?\s*\"([^\"]*)\"", match[2] or "")
        yield match[1], {label: values.split("|") for label, values in wanted}


def groupings(expression: str) -> set[str]:
    found = re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",")}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    asked = list(selectors(expression))
    assert asked or re.match(r'up\{job="diptych"\}', expression)
    for name, wanted in asked:
        assert name in exported
        assert wanted.keys() <= exported[name]
        assert set(wanted.get("code", ())) <= set(OUTCOMES)
        assert set(wanted.get("role", ())) <= {role.value for role in Role}
        assert set(wanted.get("reason", ())) <= set(LOCAL_REASONS)
    of_any = {label for name, _ in asked for label in exported[name]}
    assert groupings(expression) <= of_any | SCRAPE_LABELS
    assert expression.count("(") == expression.count(")")


def test_a_name_that_nobody_exports_is_noticed(exported: dict[str, set[str]]) -> None:
    """As the check above would: a counter without its `_total`, and a label that is another's."""
    ((name, _),) = selectors("rate(diptych_retries[5m])")
    assert name not in exported
    ((name, wanted),) = selectors('diptych_blocks{kind="used"}')
    assert not wanted.keys() <= exported[name]


def test_counters_are_rates_and_quantiles_come_from_buckets() -> None:
    for expression in EXPRESSIONS:
        for name, _ in selectors(expression):
            if name.endswith(("_total", "_bucket")):
                assert re.search(rf"rate\({re.escape(name)}", expression), expression
        if "histogram_quantile" in expression:
            assert "by (le)" in expression


def test_legends_show_labels_that_are_left() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            if "sum" in target["expr"]:
                assert shown <= groupings(target["expr"]), target


def test_panels_have_names_places_and_the_datasource_that_is_provided() -> None:
    (source,) = document(COMPOSE / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    compose = document(COMPOSE / "compose.yaml")
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == source["uid"]
    (provider,) = document(COMPOSE / "grafana/provisioning/dashboards/diptych.yaml")["providers"]
    volumes = compose["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in volumes


def test_prometheus_asks_the_router_and_has_the_rules() -> None:
    settings = document(COMPOSE / "prometheus/prometheus.yml")
    (scrape,) = settings["scrape_configs"]
    config = read_cluster(COMPOSE / "cluster.toml", {}, "")
    assert scrape["static_configs"] == [{"targets": [f"diptych:{config.router.http_port}"]}]
    assert scrape["job_name"] == "diptych"
    assert all((COMPOSE / "prometheus" / file).is_file() for file in settings["rule_files"])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_it_saw(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert re.fullmatch(r"\d+[sm]", rule["for"])
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = groupings(rule["expr"]) if "sum by" in rule["expr"] else {"instance", "worker", "role"}
    assert shown <= kept
