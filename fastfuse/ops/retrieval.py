"""The retrieval ops. Not differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfuse import reference
from fastfuse.backends import module_for
from fastfuse.ops.registry import register


def _topk(queries: Tensor, keys: Tensor, k: int, normalize: bool, backend: str) -> tuple[Tensor, Tensor]:
    module = module_for("similarity_topk", queries.device, queries.dtype, (), backend)
    return module.similarity_topk(queries, keys, k, normalize)


def _topk_fake(queries: Tensor, keys: Tensor, k: int, normalize: bool, backend: str) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    scores = queries.new_empty(shape, dtype=reference.compute_dtype(queries.dtype))
    return scores, queries.new_empty(shape, dtype=torch.int64)


def _ranks(
    queries: Tensor, keys: Tensor, positives: Tensor, first: Tensor, last: Tensor, normalize: bool, backend: str
) -> Tensor:
    module = module_for("retrieval_ranks", queries.device, queries.dtype, (), backend)
    return module.retrieval_ranks(queries, keys, positives, first, last, normalize)


def _ranks_fake(
    queries: Tensor, keys: Tensor, positives: Tensor, first: Tensor, last: Tensor, normalize: bool, backend: str
) -> Tensor:
    return torch.empty_like(first)


register(
    "similarity_topk(Tensor queries, Tensor keys, int k, bool normalize, str backend)"
    " -> (Tensor scores, Tensor indices)",
    _topk,
    _topk_fake,
)
# Query i's positives are positives[first[i]:last[i]], key indices or -1.
register(
    "retrieval_ranks(Tensor queries, Tensor keys, Tensor positives, Tensor first, Tensor last, bool normalize, "
    "str backend) -> Tensor",
    _ranks,
    _ranks_fake,
)
