"""Keys and values that are made once: of an image for all layers and beams, of words for all later words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfuse.nn.core import check_sequence, split_heads
from fastfuse.span import KeySpan

if TYPE_CHECKING:
    from fastfuse.nn.cross_attention import CrossAttention


@dataclass(frozen=True)
class ContextKV:
    """A context's keys and values for one `CrossAttention`, shared by all queries about it.

    In a decoder every layer projects the image anew, and beam search does so for every beam or keeps a copy for each.
    Here `project` makes the keys and values of all layers in one product, and beams stand side by side along the query
    axis against them: nothing is repeated, nothing has to be reordered when beams change places.
    """

    k: Tensor  # (B, H, Sk, D)
    v: Tensor  # (B, H, Sk, D)
    span: KeySpan | None = None  # which of the keys are real, (B, 1): KeySpan.lengths

    @staticmethod
    def project(
        context: Tensor,
        layers: Sequence[CrossAttention],
        *,
        span: KeySpan | None = None,
    ) -> list[ContextKV]:
        """Keys and values for each of the layers, in one matrix product.

        Args:
            context: (B, Sk, W), W being kdim and vdim of every layer; (Sk, B, W) where layers are not batch_first.
            layers: the attention modules that will look at it.
            span: key padding of the context, kept with the result.

        Raises:
            ValueError: no layer was given, widths differ, or some layers have biases and some have none.
        """
        if not layers:
            raise ValueError("layers: expected at least one CrossAttention")
        if not layers[0].batch_first:
            context = context.transpose(0, 1)
        for layer in layers:
            check_sequence("context", context, layer.kdim)
        if len({layer.in_proj_bias is None for layer in layers}) != 1:
            raise ValueError("layers: expected all of them with biases or all without")
        weights, biases = zip(*(layer.key_value_projection() for layer in layers), strict=True)
        bias = None if biases[0] is None else torch.cat(biases)
        projected = F.linear(context, torch.cat(weights), bias).split([len(weight) for weight in weights], -1)
        contexts = []
        for layer, part in zip(layers, projected, strict=True):
            k, v = part.chunk(2, -1)
            contexts.append(ContextKV(split_heads(k, layer.num_heads), split_heads(v, layer.num_heads), span))
        return contexts

    def stack(self, query: Tensor, span: KeySpan | None, bias: Tensor | None) -> tuple[Tensor, KeySpan | None]:
        """Queries of N = B * beams rows (N, S, E) as (B, beams * S, E), and their span intersected with the context's.

        Raises:
            ValueError: N is no multiple of B, or beams come with a bias that differs from query to query.
        """
        batch, rows, length = self.k.shape[0], *query.shape[:2]
        if batch == 0 or rows % batch:
            raise ValueError(f"query: expected a multiple of the context's {batch} rows, got {tuple(query.shape)}")
        beams = rows // batch
        if beams != 1:
            if bias is not None and bias.dim() > 1 and bias.shape[-2] != 1:
                raise ValueError(f"bias: expected it to be one for all queries of a context, got {tuple(bias.shape)}")
            query = query.reshape(batch, beams * length, -1)
            span = None if span is None else _stack_span(span, batch, beams, length)
        if span is None or self.span is None:
            return query, span or self.span
        return query, span & self.span


def _stack_span(span: KeySpan, batch: int, beams: int, length: int) -> KeySpan:
    """(batch * beams or 1, length or 1) ends as (batch or 1, beams * length or 1)."""

    def stacked(end: Tensor) -> Tensor:
        if end.shape == (1, 1):
            return end
        rows = 1 if end.shape[0] == 1 else batch
        return end.expand(rows * beams, length).reshape(rows, beams * length)

    return KeySpan(stacked(span.lo), stacked(span.hi))


class KVCache:
    """Keys and values of the positions so far, for decoding a word at a time.

    Attributes:
        k, v: (B, H, S, D), None before the first `append`.
    """

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def __len__(self) -> int:
        """Positions so far."""
        return 0 if self.k is None else self.k.shape[2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values (B, H, S', D) of new positions; returns those of all."""
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        self.k, self.v = k, v
        return k, v

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was; rows: int64, (new B,)."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[rows], self.v[rows]
