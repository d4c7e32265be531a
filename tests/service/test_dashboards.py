"""The dashboard and the alerts speak of metrics, labels and codes that there are."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from albireo.observations.errors import CODES
from albireo.service.app import create_app
from albireo.service.core import Core
from albireo.service.observing import Telemetry
from albireo.service.readiness import Readiness
from albireo.service.settings import Settings
from albireo.service.watch import STAGES

DEPLOY = Path(__file__).parents[2] / "deploy"

OF_PROMETHEUS = {"instance", "job"}
"""Labels that every series gets when it is scraped."""

VALUES = {"code": set(CODES), "stage": set(STAGES)}
"""Label -> all values that it can have."""


@pytest.fixture
def series(core: Core, settings: Settings, image: Callable[..., bytes]) -> dict[str, set[str]]:
    """Name of a metric -> its labels, of a service that has worked, and refused, and failed."""
    telemetry = Telemetry()
    with TestClient(create_app(core, settings, Readiness(core, settings.data_folder), telemetry)) as client:
        files = [("file", ("a.fits", image("a"))), ("file", ("b.fits", image("b")[:3000]))]
        assert client.post("/v1/embed", files=files).status_code == 200
        assert client.post("/v1/embed", content=b"x").status_code == 415
        assert client.get("/readyz").status_code == 200
        text = client.get("/metrics").text
    found: dict[str, set[str]] = defaultdict(set, {"up": set()})
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return dict(found)


def wrong(query: str, series: dict[str, set[str]]) -> list[str]:
    """What a query asks for that is not there; raises if it is no query."""
    complaints: list[str] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            if node.name not in series:
                complaints.append(f"no metric {node.name}")
                return True
            for matcher in node.matchers.matchers:
                if matcher.name not in series[node.name] | OF_PROMETHEUS:
                    complaints.append(f"{node.name} has no label {matcher.name}")
                known = VALUES.get(matcher.name)
                unknown = set(matcher.value.split("|")) - known if known else set()
                complaints.extend(f"{matcher.name} is never {value}" for value in unknown)
        elif isinstance(node, promql_parser.AggregateExpr):
            there = {label for name in names(node) for label in series.get(name, ())} | OF_PROMETHEUS
            for label in node.modifier.labels if node.modifier else ():
                if label not in there:
                    complaints.append(f"nothing inside has a label {label}")
        return True

    promql_parser.walk(promql_parser.parse(query), pre_visit=visit)
    return complaints


def names(expression: promql_parser.Expr) -> list[str]:
    """The metrics that an expression reads."""
    found: list[str] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node.name)
        return True

    promql_parser.walk(expression, pre_visit=visit)
    return found


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana-dashboard.json").read_text()))


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries(dashboard: dict[str, Any]) -> dict[str, str]:
    """Panel and letter -> its query, with Grafana's variables replaced."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }


def test_what_is_wrong_is_seen() -> None:
    known = {"a_total": {"code"}}
    assert wrong("sum by (code) (rate(a_total[5m]))", known) == []
    assert wrong("b_total", known) == ["no metric b_total"]
    assert wrong('a_total{door="x"}', known) == ["a_total has no label door"]
    assert wrong('a_total{code=~"overloaded|overlaoded"}', known) == ["code is never overlaoded"]
    assert wrong("sum by (door) (a_total)", known) == ["nothing inside has a label door"]
    with pytest.raises(ValueError, match="invalid promql"):
        wrong("sum by (code) rate(a_total[5m])", known)


def test_every_query_of_the_dashboard(dashboard: dict[str, Any], series: dict[str, set[str]]) -> None:
    found = queries(dashboard)
    assert len(found) > 20
    assert {title: bad for title, query in found.items() if (bad := wrong(query, series))} == {}
    assert "$" not in "".join(found.values())


def test_every_legend_names_labels_that_its_query_keeps(dashboard: dict[str, Any], series: dict[str, set[str]]) -> None:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m")
            tree = promql_parser.parse(query)
            labels = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            kept = {label for name in names(tree) for label in series[name]} | OF_PROMETHEUS
            by = re.findall(r"by \(([\w, ]+)\)", query)
            if by:
                kept &= {label for group in by for label in group.split(", ")}
            assert labels <= kept, panel["title"]


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_of_ours_is_looked_at(
    dashboard: dict[str, Any], rules: list[dict[str, Any]], series: dict[str, set[str]]
) -> None:
    texts = [*queries(dashboard).values(), *(rule["expr"] for rule in rules)]
    read = {re.sub("_(bucket|sum|count)$", "", name) for text in texts for name in names(promql_parser.parse(text))}
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in series if name.startswith("albireo_")}
    assert ours - read == set()


def test_alerts(rules: list[dict[str, Any]], series: dict[str, set[str]]) -> None:
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    assert {rule["alert"]: bad for rule in rules if (bad := wrong(rule["expr"], series))} == {}
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        there = {label for name in names(promql_parser.parse(rule["expr"])) for label in series[name]} | OF_PROMETHEUS
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= there, rule["alert"]


def test_prometheus_loads_the_alerts_and_asks_the_right_address(client: TestClient) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert [(DEPLOY / name).is_file() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "albireo"
    assert client.get(job["metrics_path"]).headers["content-type"].startswith("text/plain")
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{Settings.model_fields['port'].default}"]
