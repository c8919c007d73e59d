"""Exporting trained models to verified bundles of ONNX graphs, and looking after the bundles."""
