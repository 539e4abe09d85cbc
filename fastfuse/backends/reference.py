"""The dense formulas as a backend: any device, any float dtype, O(Sq * Sk) memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastfuse import reference

if TYPE_CHECKING:
    from fastfuse.backends import Problem

NAME = "reference"
HEAD_MULTIPLE = 1

attention_fwd = torch.no_grad()(reference.attention)
attention_bwd = torch.no_grad()(reference.attention_bwd)
attention_map = torch.no_grad()(reference.attention_map)
pair_softmax_fwd = reference.pair_softmax_fwd
pair_softmax_bwd = reference.pair_softmax_bwd
pair_sigmoid = reference.pair_sigmoid
similarity_topk = reference.similarity_topk
retrieval_ranks = reference.retrieval_ranks


def unavailable() -> str | None:
    return None


def reasons(problem: Problem) -> list[str]:
    return []
