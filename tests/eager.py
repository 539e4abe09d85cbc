"""The dense formulas in plain PyTorch, in whatever dtype: float64 is the truth, the tensors' own dtype is the peer.

Written independently of `fastfuse.reference`, so that neither can hide the other's mistake.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class EagerAttention(NamedTuple):
    out: Tensor  # (B, H, Sq, Dv)
    lse: Tensor  # (B, H, Sq), natural log
    weights: Tensor  # (B, H, Sq, Sk), before dropout and gate


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,  # bool, broadcastable to (B, H, Sq, Sk)
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    gate: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    keep: Tensor | None = None,  # bool (B, H, Sq, Sk): what dropout keeps
    dropout_p: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> EagerAttention:
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    s = torch.einsum("bhid,bhjd->bhij", q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if bias is not None:
        s = s.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else s + bias.to(dtype)
    if visible is not None:
        s = s.masked_fill(~visible, -math.inf)
    if sink is not None:
        s = torch.cat((s, sink.to(dtype)[None, :, None, None].expand(*s.shape[:3], 1)), -1)
    blind = (s == -math.inf).all(-1, keepdim=True)
    s = s.masked_fill(blind, 0.0)
    lse = s.logsumexp(-1).masked_fill(blind[..., 0], -math.inf)
    weights = s.softmax(-1).masked_fill(blind, 0.0)[..., : k.shape[2]]
    dropped = weights if keep is None else weights * keep / (1 - dropout_p)
    out = torch.einsum("bhij,bhjd->bhid", dropped, v)
    if gate is not None:
        out = out * torch.tanh(gate.to(dtype)).reshape(1, -1, 1, 1)
    return EagerAttention(out, lse, weights)
