"""The dense formulas as a backend: any device, any float dtype, O(Sq * Sk) memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastfuse import reference

if TYPE_CHECKING:
    from fastfuse.backends import Problem

NAME = "reference"

pair_softmax_fwd = reference.pair_softmax_fwd
pair_softmax_bwd = reference.pair_softmax_bwd
pair_sigmoid = reference.pair_sigmoid
similarity_topk = reference.similarity_topk
retrieval_ranks = reference.retrieval_ranks


def unavailable() -> str | None:
    return None


def reasons(problem: Problem) -> list[str]:
    return []


@torch.no_grad()
def attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor | None,
    hi: Tensor | None,
    bias: Tensor | None,
    sink: Tensor | None,
    gate: Tensor | None,
    scale: float,
    softcap: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return reference.attention(q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed)


@torch.no_grad()
def attention_bwd(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lo: Tensor | None,
    hi: Tensor | None,
    bias: Tensor | None,
    sink: Tensor | None,
    gate: Tensor | None,
    out: Tensor,
    lse_pair: Tensor,
    scale: float,
    softcap: float,
    dropout_p: float,
    seed: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    grads = reference.attention_bwd(dout, dlse, q, k, v, lo, hi, bias, sink, gate, scale, softcap, dropout_p, seed)
    names = ("dq", "dk", "dv", "dbias", "dsink", "dgate")
    return tuple(grads[name].contiguous() if need else q.new_empty(0) for name, need in zip(names, needs, strict=True))


@torch.no_grad()
def attention_map(
    q: Tensor,
    k: Tensor,
    lo: Tensor | None,
    hi: Tensor | None,
    bias: Tensor | None,
    lse_pair: Tensor,
    scale: float,
    softcap: float,
    mode: str,
) -> Tensor:
    return reference.attention_map(q, k, lo, hi, bias, lse_pair, scale, softcap, mode)
