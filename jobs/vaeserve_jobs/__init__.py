"""Batch jobs over files: scores, posteriors and reconstructions, resumable, on one machine or many."""

from vaeserve_jobs.engine import Engine, LocalEngine, StoppedError, Watch
from vaeserve_jobs.model import Address
from vaeserve_jobs.run import Order, finish_only, run
from vaeserve_jobs.task import Encode, Reconstruct, Score

__all__ = [
    "Address",
    "Encode",
    "Engine",
    "LocalEngine",
    "Order",
    "Reconstruct",
    "Score",
    "StoppedError",
    "Watch",
    "finish_only",
    "run",
]
