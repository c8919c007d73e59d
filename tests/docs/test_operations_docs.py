"""docs/operations.md: alerts have a place there, figures come from the results, links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs"
DEPLOY = DOCS.parent / "deploy"
PAGE = (DOCS / "operations.md").read_text()
RULES = yaml.safe_load((DEPLOY / "components" / "monitoring" / "prometheusrule.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["spec"]["groups"] for rule in group["rules"] if "alert" in rule}
ROW = re.compile(
    r"^\| .*\((W\d)\) \| (\d+) us \| ([\d,]+) (?:rows|images) a second \| (\d+) us: ([\d,]+) \|$", re.MULTILINE
)
A_REQUEST = {"W1": 1, "W2": 256, "W3": 1, "W4": 64}


def test_each_alert_leads_to_what_to_do() -> None:
    """Its runbook is a heading of the page, and each heading there is of an alert that there is."""
    headings = re.findall(r"^### (Vaeserve\w+)$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")


def test_each_alert_says_what_to_do() -> None:
    """Under every heading there is a text."""
    texts = re.split(r"^### Vaeserve\w+\n", PAGE, flags=re.MULTILINE)[1:]
    assert len(texts) == len(ALERTS)
    assert all(text.strip() for text in texts)


def test_sizes_are_those_measured() -> None:
    """Each processor time is the results' own, and what follows from it is no more than that."""
    results = (DOCS / "results.md").read_text()
    rows = ROW.findall(PAGE)
    assert len(rows) == 5
    for workload, *figures in rows:
        for microseconds, rate in (figures[:2], figures[2:]):
            assert re.search(rf"^\| {workload}\b.*\| {microseconds} : ", results, re.MULTILINE)
            most = A_REQUEST[workload] / (int(microseconds) * 1e-6)
            assert 0.96 * most < int(rate.replace(",", "")) <= most


def test_every_command_of_a_figure_is_one() -> None:
    """What measured a figure can be run."""
    named = re.findall(r"python -m benchmarks (\w+)", PAGE)
    assert named
    known = (DOCS.parent / "benchmarks" / "__main__.py").read_text()
    assert all(f'    "{name}": ' in known for name in named)


@pytest.mark.parametrize("page", [DOCS / "operations.md", DEPLOY / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every path is there, and every heading that a link names."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
