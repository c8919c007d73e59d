"""Serving bundles with ONNX Runtime over gRPC."""
