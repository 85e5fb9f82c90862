"""Alert rules, dashboard and page: every metric, label and value that they name is one that a run's metrics have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rfss_core.events import (
    CaseQuarantined,
    ChunkFinished,
    ChunkRetried,
    DatasetRegistered,
    DriftMeasured,
    QualityMeasured,
    RunEnded,
    RunStarted,
    StageFinished,
    StageStarted,
)
from tasks.executor import Load
from tasks.json_lines import LINE_FIELDS
from tasks.metrics import RunMetrics

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments" / "observability"
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
OWN = {"instance", "job", "le"}
"""Labels that Prometheus adds, and that of histograms' buckets."""
CLOSED = {"outcome", "phase", "decision"}
"""Labels whose values are known beforehand."""


def known() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return the labels of each sample, and the values of each label, after every kind of event."""
    metrics = RunMetrics("r", lambda: Load(1, 0))
    stages = ("ingest", "embed", "segment")
    for event in (
        RunStarted("label-dataset", "d", "tiny", "local", "1"),
        *(StageStarted(stage, 1, 0) for stage in stages),
        *(ChunkFinished(stage, "c", 1, 1, 1, 1) for stage in stages),
        ChunkRetried("embed", "c", 1, "store", ""),
        CaseQuarantined("n", "truncated", "", "c"),
        StageFinished("embed", 1.0),
        QualityMeasured({"mean": 1.0}, {"mean": 1.0}, dict.fromkeys(("accept", "review", "reject"), 1), (0.5,), True),
        DriftMeasured(0.0, 0.0, 0),
        DatasetRegistered("d", "1", "accepted", "f", "m"),
        *(RunEnded(state, 1.0) for state in ("finished", "failed", "stopped")),
    ):
        metrics(event)
    labels: dict[str, set[str]] = {}
    values: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels.setdefault(sample.name, set()).update(sample.labels)
                for name, value in sample.labels.items():
                    values[f"{sample.name} {name}"].add(value)
    return labels, values


LABELS, VALUES = known()
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            # What Grafana puts in before it asks Prometheus.
            yield panel["title"], re.sub(r"\$(flow|dataset)", ".*", target["expr"]).replace("$__rate_interval", "5m")
    for number, text in enumerate(re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)):
        for line in text.strip().splitlines():
            yield f"docs/observability.md {number}", line.split(" #")[0]


def nodes(expression: Any) -> Iterator[Any]:
    yield expression
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        child = getattr(expression, name, None)
        if child is not None and not isinstance(child, str | int | float):
            yield from nodes(child)
    for child in getattr(expression, "args", ()) or ():
        yield from nodes(child)


EXPRESSIONS = list(expressions())


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expressions_name_what_there_is(where: str, text: str) -> None:
    parsed = list(nodes(promql.parse(text)))
    selectors = [node for node in parsed if isinstance(node, promql.VectorSelector)]
    names = {str(selector.name) for selector in selectors}
    assert names
    # What the tree above holds is all that the text does.
    assert names == set(re.findall(r"\brfss_\w+", text))
    assert names <= LABELS.keys(), f"{where} names {names - LABELS.keys()}"
    for selector in selectors:
        for matcher in selector.matchers.matchers:
            own = LABELS[str(selector.name)]
            assert matcher.name in own | OWN, f"{where}: {selector.name} has no label {matcher.name}"
            if matcher.name in CLOSED or (matcher.name == "state" and "queue" not in str(selector.name)):
                assert matcher.value in VALUES[f"{selector.name} {matcher.name}"] | {"failed"}
    for node in parsed:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            inner = {name for part in nodes(node.expr) if isinstance(part, promql.VectorSelector)
                     for name in LABELS[str(part.name)]}  # fmt: skip
            assert set(node.modifier.labels) <= inner | OWN, f"{where} groups by a label that is not there"


def test_rules_say_what_to_do_with_labels_that_there_are() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 8
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= {"flow", "dataset", "stage"}
        assert f"`{rule['alert']}`" in PAGE, f"docs/observability.md does not say what to do about {rule['alert']}"


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all({"type", "title", "gridPos"} <= panel.keys() for panel in panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"panel '{panel['title']}' lies over another"
        taken |= cells
    for variable in DASHBOARD["templating"]["list"][1:]:
        [(metric, label)] = re.findall(r"label_values\((\w+), (\w+)\)", variable["definition"])
        assert label in LABELS[metric]


def test_the_example_of_prometheus_reads_the_rules() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["rules.yml"]
    assert {job["job_name"] for job in config["scrape_configs"]} >= {"rfss", "rfss-run", "node", "prefect"}


def test_the_page_has_every_metric_and_every_field() -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in LABELS}
    rows = {
        name: set(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(rfss_\w+)` \| [^|]*\|([^|]*)\|", PAGE, re.MULTILINE)
    }
    assert rows.keys() == families
    for name, labels in LABELS.items():
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert rows[family] == labels - {"flow", "dataset", "le"}, family
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert {"time", "level", "logger", "message", "run", "flow_run", "stage", "chunk", "case", "worker"} <= told
    assert set(LINE_FIELDS) - told == set()
