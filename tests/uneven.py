"""A matrix library that promises no more than IEEE does: ``python -m pytest -p tests.uneven``.

Products, normalisations, and functions that IEEE does not round exactly come out up to two units in the last place
away, by the shape and by where in the result an element lies, as where a library takes the rows of a batch in
different ways on some machine. The same input of the same shape still gives the same bits. A test that fails only
so relies on what arithmetic does not promise: equal rows, batches of other sizes, other block sizes. Worker
processes and compiled code are as always.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

_UNITS = 2.0
_LIBRARY = torch.library.Library("aten", "IMPL")


def _uneven(result: Tensor) -> Tensor:
    """The same within two units in the last place; zeros, ones, and what is not finite, as they were."""
    if result.numel() == 0 or not result.is_floating_point():
        return result
    width = result.shape[-1] if result.dim() else 1
    rows = torch.arange(result.numel() // width, device=result.device)
    pattern = (rows * 7 + rows // 5 + result.numel() * 3) % 5 - 2  # [rows], -2 to 2
    factor = 1.0 + pattern.to(result.dtype) * (_UNITS / 2 * torch.finfo(result.dtype).eps)
    other = result * factor.view(*result.shape[:-1], 1) if result.dim() else result * factor.squeeze(0)
    return torch.where(result.abs() == 1, result, other)


def _install() -> None:
    """Put the rounding into the kernels of the CPU, below autograd."""
    ops = torch.ops.aten

    def product(a: Tensor, b: Tensor) -> Tensor:
        return _uneven(ops.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1])))

    def affine(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        out = a.new_empty(a.shape[0], b.shape[1])
        return _uneven(ops.addmm.out(bias, a, b, beta=beta, alpha=alpha, out=out))

    def products(a: Tensor, b: Tensor) -> Tensor:
        return _uneven(ops.bmm.out(a, b, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2])))

    def affines(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
        return _uneven(ops.baddbmm.out(bias, a, b, beta=beta, alpha=alpha, out=out))

    def softmax(x: Tensor, dim: int, half: bool) -> Tensor:
        return _uneven(ops._softmax.out(x, dim, half, out=torch.empty_like(x)))

    def log_softmax(x: Tensor, dim: int, half: bool) -> Tensor:
        return _uneven(ops._log_softmax.out(x, dim, half, out=torch.empty_like(x)))

    warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)

    def rounded(name: str) -> Callable[[Tensor], Tensor]:
        exact = getattr(ops, name).out
        return lambda x: (
            _uneven(exact(x, out=torch.empty_like(x))) if x.is_floating_point() else exact(x, out=x.float())
        )

    for name, kernel in {
        "mm": product,
        "addmm": affine,
        "bmm": products,
        "baddbmm": affines,
        "_softmax": softmax,
        "_log_softmax": log_softmax,
        **{name: rounded(name) for name in ("cos", "sin", "exp", "tanh", "log")},
    }.items():
        _LIBRARY.impl(name, kernel, "CPU", allow_override=True)


_install()
