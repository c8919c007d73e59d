"""The alerts: known to promtool, silent and firing where they should, about metrics that a live service has."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.conftest import Monitored
from tests.deploy.meaning import targets
from tests.deploy.monitored import LABELS
from tests.deploy.rendering import DEPLOY, Manifest, of_kind, run

pytestmark = pytest.mark.deploy

Rendered = Callable[[str], list[Manifest]]

ALERTS = Path(__file__).with_name("alerts.yaml")
# A metric with what is asked of its labels.
SELECTOR = re.compile(r"\b((?:vaeserve|process|namespace_job)[a-z0-9_:]+)(\{[^}]*\})?")


@pytest.fixture
def rule(rendered: Rendered) -> Manifest:
    """Return the PrometheusRule."""
    (found,) = of_kind(rendered("everything"), "PrometheusRule")
    return found


def rules(rule: Manifest) -> Iterator[dict[str, Any]]:
    """Yield every rule of a PrometheusRule."""
    for group in rule["spec"]["groups"]:
        yield from group["rules"]


def alerts(rule: Manifest) -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    return {each["alert"]: each for each in rules(rule) if "alert" in each}


def put_beside(folder: Path, spec: dict[str, Any], tests: str) -> Path:
    """Write rules, and tests of them, and return the tests' file."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec))
    (folder / "alerts.yaml").write_text(tests)
    return folder / "alerts.yaml"


def test_promtool_knows_the_rules(rule: Manifest, tmp_path: Path) -> None:
    """Promtool's own checks find no fault."""
    put_beside(tmp_path, rule["spec"], "")
    assert "SUCCESS" in run("promtool", "check", "rules", "--lint-fatal", tmp_path / "rules.yaml")


@pytest.mark.timeout(600)
def test_each_alert_is_silent_and_fires(rule: Manifest, tmp_path: Path) -> None:
    """With the series of alerts.yaml each alert is silent before the fault, and fires after it, in these words."""
    assert "SUCCESS" in run("promtool", "test", "rules", put_beside(tmp_path, rule["spec"], ALERTS.read_text()))


def test_each_alert_is_tried_both_ways(rule: Manifest) -> None:
    """alerts.yaml has a silent and a firing moment of every alert."""
    tried: dict[str, set[bool]] = {}
    for case in yaml.safe_load(ALERTS.read_text())["tests"]:
        for moment in case["alert_rule_test"]:
            tried.setdefault(moment["alertname"], set()).add("exp_alerts" in moment)
    assert tried == {name: {False, True} for name in alerts(rule)}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("VaeserveQueueStuck", "> 0", "> 500"),
        ("VaeserveOverloaded", "queue_full", "queue"),
        ("VaeserveModelLoadFailed", "offset 15m", "offset 1m"),
        ("VaeserveCertificateExpires", "< 86400", "< 8640"),
        ("VaeserveScoresDrifted", "> 0.03", "> 0.003"),
    ],
)
def test_a_broken_alert_is_found(rule: Manifest, tmp_path: Path, *, name: str, old: str, new: str) -> None:
    """With a wrong threshold, label or offset the tests of that alert fail."""
    alert = alerts(rule)[name]
    broken = {"name": "broken", "rules": [alert | {"expr": alert["expr"].replace(old, new)}]}
    assert broken["rules"] != [alert]
    tests = yaml.safe_load(ALERTS.read_text())
    tests["tests"] = [case for case in tests["tests"] if case["name"].startswith(f"{name},")]
    path = put_beside(tmp_path, {"groups": [broken]}, yaml.safe_dump(tests))
    assert "FAILED" in run("promtool", "test", "rules", path, check=False)


def exported(monitored: Monitored) -> set[str]:
    """Return the names of what a live service shows."""
    families = text_string_to_metric_families(monitored.scrape)
    return {sample.name for family in families for sample in family.samples}


def unknown(text: str, names: set[str]) -> set[str]:
    """Return the metrics of ours that a text names and a service doesn't show."""
    return set(re.findall(r"\b(?:vaeserve|process)_\w+", text)) - names


def test_metrics_of_rules_and_autoscalers_are_exported(
    rule: Manifest, rendered: Rendered, monitored: Monitored
) -> None:
    """Whatever metric the rules, the HPA and KEDA name is in a live scrape; a misspelt one would not be."""
    names = exported(monitored)
    recorded = {each["record"].split(":")[1] for each in rules(rule) if "record" in each}
    for each in rules(rule):
        assert unknown(each["expr"], names | recorded) == set()
    scalers = [*of_kind(rendered("cpu"), "HorizontalPodAutoscaler"), *of_kind(rendered("keda"), "ScaledObject")]
    for scaler in scalers:
        assert targets(scaler)
        assert targets(scaler).keys() <= names
    assert unknown("rate(vaeserve_request_total[5m])", names) == {"vaeserve_request_total"}


def test_what_rules_select_is_there(rule: Manifest, monitored: Monitored) -> None:
    """Every metric with every label that the rules ask for has a series in a live Prometheus."""
    selectors = {"".join(found) for each in rules(rule) for found in SELECTOR.findall(each["expr"])}
    assert len(selectors) > 30
    assert {
        selector for selector in selectors if not monitored.prometheus.get("query", query=selector)["result"]
    } == set()
    assert not monitored.prometheus.get("query", query='vaeserve_rejected_requests_total{reason="full"}')["result"]


def test_a_live_prometheus_evaluates_every_rule(rule: Manifest, monitored: Monitored) -> None:
    """No rule fails, and of what was provoked the alert fires: a version that can't be loaded."""
    groups = monitored.prometheus.get("rules")["groups"]
    states = {each["name"]: each for group in groups for each in group["rules"]}
    assert {each["health"] for each in states.values()} == {"ok"}
    assert alerts(rule).keys() <= states.keys()
    assert states["VaeserveModelLoadFailed"]["state"] == "firing"
    assert states["VaeserveUnreachable"]["state"] == "inactive"


def test_the_adapter_makes_the_metrics_of_the_autoscaler(rendered: Rendered, monitored: Monitored) -> None:
    """The adapter's rule finds the series of each of the HPA's metrics, and its query has a value for the pod."""
    (custom,) = yaml.safe_load((DEPLOY / "components/autoscaling/adapter-values.yaml").read_text())["rules"]["custom"]
    (hpa,) = of_kind(rendered("cpu"), "HorizontalPodAutoscaler")
    found = {series["__name__"] for series in monitored.prometheus.get("series", **{"match[]": custom["seriesQuery"]})}
    assert found == targets(hpa).keys()
    for name in found:
        query = custom["metricsQuery"].replace("<<.Series>>", name).replace("<<.GroupBy>>", "pod")
        query = query.replace("<<.LabelMatchers>>", f'namespace="{LABELS["namespace"]}",pod=~"{LABELS["pod"]}"')
        assert len(monitored.prometheus.ask(query)) == 1


def test_keda_is_answered(rendered: Rendered, monitored: Monitored) -> None:
    """Each of the ScaledObject's queries has one value."""
    (scaler,) = of_kind(rendered("keda"), "ScaledObject")
    for trigger in scaler["spec"]["triggers"]:
        assert len(monitored.prometheus.ask(trigger["metadata"]["query"])) == 1
