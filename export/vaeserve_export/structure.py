"""Whether a graph is well formed, as ONNX's own checker sees it."""

import onnx

from vaeserve.errors import RefusedError, first_line


def checked(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the graph with the shapes of all its values; raises RefusedError, naming it, if ONNX finds it wrong."""
    try:
        # First by itself: shape inference takes for granted that each value has a node that makes it (onnx 1.23.2 reads
        # through a null pointer where a LabelEncoder's input has none).
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(inferred, full_check=True)
    except Exception as error:  # a name that is no UTF-8 fails with Python's error, for the message holds it
        raise RefusedError(f"{name}.onnx: {first_line(error)}") from None
    return inferred
