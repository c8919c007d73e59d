"""The two versions of a model that the service's tests have."""

from tests.service.conftest import two_bundles

__all__ = ["two_bundles"]
