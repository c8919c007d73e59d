"""Which versions are to be served."""

from pathlib import Path
from typing import Any

import pytest

from vaeserve.config import load
from vaeserve.errors import ConfigError
from vaeserve_service.config import RepositoryConfig, ServiceConfig
from vaeserve_service.policy import Policy


def policy(**settings: Any) -> Policy:
    """Return the policy of some settings."""
    return Policy(RepositoryConfig(path=Path(), **settings))


@pytest.mark.parametrize(
    ("settings", "candidates"),
    [
        ({}, ([12, 3, 2], 1)),
        ({"latest": 2}, ([12, 3, 2], 2)),
        ({"models": ["fraud"]}, ([12, 3, 2], 1)),
        ({"models": ["churn"]}, ([], 0)),
        ({"versions": {"fraud": [2, 12, 40]}}, ([12, 2], 2)),
        ({"versions": {"churn": [2]}, "latest": 3}, ([12, 3, 2], 3)),
    ],
)
def test_candidates_are_the_newest_or_those_listed(settings: dict[str, Any], candidates: tuple[list[int], int]) -> None:
    """Newest first, by number, and more than are served: an older one may take a broken one's place."""
    assert policy(**settings).candidates("fraud", {2, 3, 12}) == candidates


def test_what_is_named_is_missing_until_it_is_served() -> None:
    """A model that is named takes one version, one whose versions are listed takes them all, and others none."""
    named = policy(models=["fraud", "churn"], versions={"fraud": [3, 5]})
    assert named.missing({}) == ["churn", "fraud/3", "fraud/5"]
    assert named.missing({"churn": {9}, "fraud": {5, 4}}) == ["fraud/3"]
    assert named.missing({"churn": {9}, "fraud": {5, 3}}) == []
    assert policy().missing({}) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"poll_s": -1}, "repository.poll_s: -1; Input should be greater"),
        ({"models": ["../x"]}, "repository.models.0: '../x'; String should match pattern"),
        ({"versions": {"fraud": [0]}}, "repository.versions.fraud.0: 0; Input should be greater"),
        ({"versions": {"fraud": []}}, "repository.versions.fraud: []; "),
        ({"versions": {"fraud": [1]}, "models": ["churn"]}, "versions of 'fraud'; expected of one of models: churn"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    """Each wrong setting is named, with its value and what was expected."""
    with pytest.raises(ConfigError) as refusal:
        load(ServiceConfig, overrides={"repository": {"path": "models", **settings}})
    assert message in str(refusal.value)
