"""CUDA graphs: kernels are recorded once and started as a whole, instead of one launch after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    result: Any


class Graphed:
    """A function of tensors that is replayed as a CUDA graph; where that is off it is called as it is.

    The first call with tensors of certain shapes runs the function, which allocates and initialises what it needs;
    the second one records it. So what it changes is changed once in each call. It must not wait for the GPU, and
    whatever it reads besides its arguments must keep its place in memory. Its result is overwritten by the next
    call.

    Args:
        function: of tensors on one device. enabled: whether they are on a CUDA GPU and graphs are wanted.
    """

    def __init__(self, function: Callable[..., Any], enabled: bool) -> None:
        self._function, self._enabled = function, enabled
        self._recordings: dict[tuple[Any, ...], _Recording | None] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        if not self._enabled:
            return self._function(*inputs)
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._recordings:
            self._recordings[key] = None
            return self._on_another_stream(inputs)
        recording = self._recordings[key]
        if recording is None:
            # What the first call left behind on its stream can be used by no other one.
            torch.cuda.empty_cache()
            own = tuple(tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as one that pins memory, may use the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = self._function(*own)
            recording = self._recordings[key] = _Recording(graph, own, result)
        else:
            for own_tensor, tensor in zip(recording.inputs, inputs, strict=True):
                own_tensor.copy_(tensor)
        recording.graph.replay()
        return recording.result

    def _on_another_stream(self, inputs: tuple[Tensor, ...]) -> Any:
        # Libraries that are first used on the stream of a recording would allocate there.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result
