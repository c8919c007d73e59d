"""Calls whose inputs and outputs lie in buffers of the session's device, made once and used again.

ONNX Runtime takes a bound buffer of a call's exact shape alone, so buffers are made for a power of two of rows: a call
fills the first of them, and only their outputs are handed on. The others hold rows of earlier calls, which cost the
device what it does beside anyway, and no row touches another. A device so sees few shapes, each of which it prepares
kernels for.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int32)": np.int32}


class Bindings:
    """A session's buffers: a call takes a set of them and gives it back, so there are as many as calls at once."""

    def __init__(self, session: Any, device: str) -> None:
        """Bind calls of an `onnxruntime.InferenceSession` to `device`, as OrtValue names devices."""
        self._session = session
        self._device = device
        self._free: defaultdict[tuple[int, tuple[str, ...]], list[_Binding]] = defaultdict(list)

    def run(
        self, rows: Mapping[str, NDArray[Any]], fixed: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> Arrays:
        """Return the named outputs, one entry a row, for inputs with an entry a row and such as are for all of them.

        Raises ValueError for inputs of another shape or dtype than the graph takes, and what ONNX Runtime does.
        """
        count = len(next(iter(rows.values())))
        free = self._free[power_of_two(count), tuple(outputs)]
        try:
            binding = free.pop()
        except IndexError:
            binding = _Binding(self._session, self._device, power_of_two(count), rows, outputs)
        computed = binding.run(rows, fixed, count)
        free.append(binding)  # one whose call failed is dropped, whatever it holds
        return computed


class _Binding:
    """Buffers of the device for so many rows, bound to a session's inputs and outputs."""

    def __init__(self, session: Any, device: str, size: int, rows: Mapping[str, Any], outputs: Sequence[str]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._fixed: Arrays = {}
        self._inputs: dict[str, tuple[NDArray[Any], Any]] = {}
        self._outputs: dict[str, Any] = {}
        for value in session.get_inputs():
            if value.name in rows:
                buffer = _buffer(session, device, size, value)
                # The device's buffer is filled as a whole, from one like it here.
                self._inputs[value.name] = np.zeros(buffer.shape(), _DTYPES[value.type]), buffer
                self._binding.bind_ortvalue_input(value.name, buffer)
        gives = {value.name: value for value in session.get_outputs()}
        for name in outputs:
            if _has_fixed_width(gives[name]):
                self._outputs[name] = _buffer(session, device, size, gives[name])
                self._binding.bind_ortvalue_output(name, self._outputs[name])
        self._names = outputs
        self._unbuffered = [name for name in outputs if name not in self._outputs]

    def run(self, rows: Mapping[str, NDArray[Any]], fixed: Mapping[str, NDArray[Any]], count: int) -> Arrays:
        for name, (host, buffer) in self._inputs.items():
            _fill(host, rows[name], name)
            buffer.update_inplace(host)
        for name, array in fixed.items():
            if not np.array_equal(self._fixed.get(name, np.nan), array):
                # It stays on the device until it is another: the noise is the same from call to call.
                self._fixed[name] = array.copy()
                self._binding.bind_cpu_input(name, self._fixed[name])
                self._binding.synchronize_inputs()
        for name in self._unbuffered:
            self._binding.bind_output(name, "cpu")  # anew each time, or the last call's must do for this one
        self._session.run_with_iobinding(self._binding)
        # Not `copy_outputs_to_cpu`, which crashes on strings (1.31 and 1.32).
        unbuffered = self._binding.get_outputs()[len(self._outputs) :] if self._unbuffered else ()
        computed = self._outputs | dict(zip(self._unbuffered, unbuffered, strict=True))
        # A copy: of a buffer of the CPU `numpy` is a view.
        return {name: computed[name].numpy()[:count].copy() for name in self._names}


def power_of_two(count: int) -> int:
    """Return the least power of two that is `count` or more."""
    return 1 << max(0, count - 1).bit_length()


def takes_strings(session: Any) -> bool:
    """Tell whether a session has an input that can't be bound."""
    return any(value.type not in _DTYPES for value in session.get_inputs())


def _has_fixed_width(value: Any) -> bool:
    """Tell whether an output can have a buffer: no strings, and of free lengths none but the rows."""
    return value.type in _DTYPES and all(isinstance(length, int) for length in value.shape[1:])


def _buffer(session: Any, device: str, size: int, value: Any) -> Any:
    """Return memory of the session's own arena, within its limit, for `size` rows of an input or output."""
    return session.create_ortvalue_from_shape_and_type([size, *value.shape[1:]], _DTYPES[value.type], device)


def _fill(host: NDArray[Any], rows: NDArray[Any], name: str) -> None:
    """Copy rows to the front of `host`; what a session would refuse, NumPy would convert or repeat."""
    if rows.dtype != host.dtype or rows.shape[1:] != host.shape[1:]:
        raise ValueError(
            f"{name}: {rows.dtype} of shape {list(rows.shape)}; expected {host.dtype} of {list(host.shape[1:])} a row"
        )
    host[: len(rows)] = rows
