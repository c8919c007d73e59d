"""Exporting trained models to verified bundles of ONNX graphs."""

from vaeserve_export.export import export

__all__ = ["export"]
