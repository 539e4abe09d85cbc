"""Cross entropy of a projection to a vocabulary (a caption head) that never holds all logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfuse.ops import linear_cross_entropy as _op

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy(F.linear(hidden, weight, bias), target)``, in chunks of rows.

    Each chunk's logits exist once, in forward, which also computes the gradients (arXiv:2410.10989).

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64.
        weight: (V, D), the same dtype.
        target: (...) class indices, 0 <= target < V or ignore_index.
        bias: (V,), the same dtype.
        ignore_index: targets of this value count neither in the loss nor in the mean.
        label_smoothing: share of the target spread evenly over the V classes, 0 <= label_smoothing <= 1.

    Returns:
        0-dim mean over the targets that are not ignored, float32 (float64 for float64); 0 when all are ignored.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or values do not fit.
    """
    for name, t in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if t is None and name == "bias":
            continue
        if not isinstance(t, Tensor) or t.dtype not in _FLOATS:
            came = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{name}: expected a tensor of float32, bfloat16, float16 or float64, got {came}")
        if t.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device} as hidden, got {t.device}")
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        came = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target: expected an integer tensor, got {came}")
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: expected shape (V, D) with V >= 1, got {tuple(weight.shape)}")
    V, D = weight.shape
    if hidden.dim() == 0 or hidden.shape[-1] != D:
        raise ValueError(
            f"hidden: expected (..., D) with D = {D} of weight {tuple(weight.shape)}, got {tuple(hidden.shape)}"
        )
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"target: expected {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}, got {tuple(target.shape)}"
        )
    if bias is not None and bias.shape != (V,):
        raise ValueError(f"bias: expected ({V},) for weight {tuple(weight.shape)}, got {tuple(bias.shape)}")
    if target.device != hidden.device:
        raise ValueError(f"target: expected device {hidden.device} as hidden, got {target.device}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected 0 <= label_smoothing <= 1, got {label_smoothing}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.dtype != hidden.dtype:
            raise TypeError(f"{name}: expected {hidden.dtype} as hidden, got {t.dtype}")
    target = target.reshape(-1).to(torch.int64)
    return _op.linear_cross_entropy(hidden.reshape(-1, D), weight, bias, target, ignore_index, float(label_smoothing))
