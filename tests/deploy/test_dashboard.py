"""The dashboard: whole, readable, and every query of it answered by a live Prometheus."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy.conftest import Monitored
from tests.deploy.meaning import targets
from tests.deploy.monitored import LABELS, MODEL
from tests.deploy.rendering import DEPLOY, Manifest, of_kind
from tests.deploy.test_rules import exported, unknown

pytestmark = pytest.mark.deploy

ROWS = ["Calls", "Computing", "Models", "Scores and drift", "Process"]
# What a user chooses at the top, as Grafana puts it into a query.
CHOSEN = {"$namespace": LABELS["namespace"], "$model": MODEL, "$version": "1", "$__rate_interval": "1m"}
# Grafana's names of units, those used here.
UNITS = {"bool_yes_no", "bytes", "none", "percentunit", "reqps", "rowsps", "s", "short"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    read: dict[str, Any] = json.loads((DEPLOY / "components" / "monitoring" / "dashboard.json").read_text())
    return read


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each query with its panel's title."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def filled(query: str, chosen: dict[str, str] = CHOSEN) -> str:
    """Return a query with the variables replaced by what is chosen."""
    for name, value in chosen.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def test_dashboard_is_the_one_that_grafana_finds(
    dashboard: dict[str, Any], rendered: Callable[[str], list[Manifest]]
) -> None:
    """The rendered ConfigMap has it, under the label that Grafana's sidecar looks for."""
    (found,) = [each for each in of_kind(rendered("everything"), "ConfigMap")
                if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]  # fmt: skip
    assert json.loads(found["data"]["vaeserve.json"]) == dashboard


def test_rows_are_what_one_looks_for(dashboard: dict[str, Any]) -> None:
    """They stand in this order, and each has panels below it."""
    rows = [panel for panel in dashboard["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows] == ROWS
    kinds = [panel["type"] for panel in dashboard["panels"]]
    assert all(after != "row" for kind, after in zip(kinds, [*kinds[1:], "row"], strict=True) if kind == "row")


def test_panels_are_told_apart(dashboard: dict[str, Any]) -> None:
    """Each has a number and a title of its own, a unit, and queries with names and legends of the chosen Prometheus."""
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len({*ids}) == len(ids)
    assert len({*titles}) == len(titles)
    for panel in panels(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        references = [target["refId"] for target in panel["targets"]]
        assert len({*references}) == len(references) > 0
        for target in panel["targets"]:
            assert target["legendFormat"]
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_dont_overlap(dashboard: dict[str, Any]) -> None:
    """No two stand on one place of the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_metrics_of_the_dashboard_are_exported(dashboard: dict[str, Any], monitored: Monitored) -> None:
    """Whatever metric it names, in queries, variables or annotations, is in a live scrape."""
    assert unknown(json.dumps(dashboard), exported(monitored)) == set()


def test_every_query_has_data(dashboard: dict[str, Any], monitored: Monitored) -> None:
    """Of a service that was asked everything, each query of each panel has numbers; of another model none has."""
    asked = {f"{title}: {query}": monitored.prometheus.ask(filled(query)) for title, query in queries(dashboard)}
    assert len(asked) > 30
    assert [query for query, values in asked.items() if not values] == []


def test_panels_follow_what_is_chosen(dashboard: dict[str, Any], monitored: Monitored) -> None:
    """Of a namespace without a service no query has data."""
    elsewhere = CHOSEN | {"$namespace": "elsewhere"}
    for title, query in queries(dashboard):
        assert monitored.prometheus.ask(filled(query, elsewhere)) == {}, title


def lines(dashboard: dict[str, Any], title: str) -> list[float]:
    """Return where a panel draws lines."""
    (panel,) = [panel for panel in panels(dashboard) if panel["title"] == title]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return [step["value"] for step in steps if step["value"] is not None]


def test_lines_are_what_others_go_by(dashboard: dict[str, Any], rendered: Callable[[str], list[Manifest]]) -> None:
    """They are the autoscaler's targets and the alerts' thresholds."""
    (hpa,), (rule,) = of_kind(rendered("cpu"), "HorizontalPodAutoscaler"), of_kind(rendered("keda"), "PrometheusRule")
    aims = targets(hpa)
    assert lines(dashboard, "Calls in flight") == [aims["vaeserve_in_flight_requests"]]
    assert lines(dashboard, "Rows waiting") == [aims["vaeserve_queue_rows"]]
    told = json.dumps(rule["spec"])
    for title, threshold, said in (
        ("Share that fails by our fault", 0.001, "14.4 * 0.001"),
        ("Time of a Score call", 0.25, 'le=\\"0.25\\"'),
        ("Share of rows past the calibration's 1 %", 0.03, "> 0.03"),
        ("Mean log-likelihood, off the calibration's", 0.5, "> 0.5"),
        ("Open files and connections", 0.8, "> 0.8"),
        ("Time to the certificate's expiry", 7 * 86400, "< 7 * 86400"),
    ):
        assert threshold in lines(dashboard, title)
        assert said in told


def test_annotations_can_be_asked_for(dashboard: dict[str, Any], monitored: Monitored) -> None:
    """A live Prometheus takes their queries."""
    for annotation in dashboard["annotations"]["list"]:
        assert monitored.prometheus.ask(filled(annotation["expr"])) == {}


def test_variables_offer_what_there_is(dashboard: dict[str, Any], monitored: Monitored) -> None:
    """The namespace, the models and their versions can be chosen, and all at once."""
    offered = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(offered) == ["datasource", "namespace", "model", "version"]
    for name, expected in (("namespace", LABELS["namespace"]), ("model", MODEL), ("version", "1")):
        series, label = filled(offered[name]["definition"]).removeprefix("label_values(").rstrip(")").rsplit(", ", 1)
        values = {found[label] for found in monitored.prometheus.get("series", **{"match[]": series})}
        assert values == {expected}
        assert offered[name]["allValue"] == ".*"
