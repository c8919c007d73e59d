"""A benchmark's training settings: its own, and what `--set` changes of them."""

import argparse
from collections.abc import Mapping
from typing import Any

from vaeserve.config import load, parse_overrides
from vaeserve_training.config import TrainConfig


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="a training setting to change, as in `vaeserve train`; may be repeated",
    )


def settings(defaults: Mapping[str, Mapping[str, Any]], overrides: list[str]) -> TrainConfig:
    """Return `defaults` with the environment's settings and `overrides` above them."""
    return load(TrainConfig, defaults=defaults, overrides=parse_overrides(overrides))
