"""Anomaly detection in production with variational autoencoders: the client."""

from vaeserve.client import AsyncClient, Client
from vaeserve.connection import Tls
from vaeserve.errors import VaeserveError
from vaeserve.latents import Interpolation
from vaeserve.scores import Attribution, Bound, RowStatus, Scores

__all__ = [
    "AsyncClient",
    "Attribution",
    "Bound",
    "Client",
    "Interpolation",
    "RowStatus",
    "Scores",
    "Tls",
    "VaeserveError",
]

__version__ = "0.1.0"
