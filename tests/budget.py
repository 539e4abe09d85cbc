"""How wrong a result may be: at most twice as wrong as eager PyTorch in the same dtype, plus one rounding band."""

from __future__ import annotations

import torch
from torch import Tensor

_SLACK = 2.0
_SLACK_FEW = 8.0  # of few numbers, eager's error is one draw, small by luck
_FEW = 64
_FLOOR = 1e-6  # below this, a truth of about 0 has no scale of its own


def assert_within_budget(name: str, ours: Tensor, truth: Tensor, eager: Tensor, dtype: torch.dtype) -> None:
    """max |ours - truth| <= slack * (max |eager - truth| + 2 eps(dtype) max |truth|), infinities where truth has."""
    error, allowed = error_and_allowance(name, ours, truth, eager, dtype)
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def error_and_allowance(
    name: str, ours: Tensor, truth: Tensor, eager: Tensor, dtype: torch.dtype
) -> tuple[float, float]:
    """Both sides of the budget, for those who average them over draws; shapes and infinities are checked here."""
    assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    ours, truth, eager = (t.detach().double() for t in (ours, truth, eager))
    assert not torch.isnan(ours).any(), f"{name}: NaN"
    infinite = torch.isinf(truth)
    assert torch.equal(torch.where(infinite, truth, 0.0), torch.where(torch.isinf(ours), ours, 0.0)), (
        f"{name}: misplaced infinities"
    )
    if not truth.numel():
        return 0.0, 0.0
    ours, truth, eager = (torch.where(infinite, 0.0, t) for t in (ours, truth, eager))
    error = (ours - truth).abs().max().item()
    eager_error = torch.nan_to_num(eager - truth, nan=0.0, posinf=0.0, neginf=0.0).abs().max().item()
    slack = _SLACK_FEW if truth.numel() <= _FEW else _SLACK
    return error, slack * (eager_error + 2 * torch.finfo(dtype).eps * max(truth.abs().max().item(), _FLOOR))
