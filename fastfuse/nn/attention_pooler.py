"""Pooling by attention: learned queries that read a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastfuse.nn.context_kv import ContextKV
from fastfuse.nn.core import Attention
from fastfuse.nn.cross_attention import CrossAttention
from fastfuse.span import KeySpan


class AttentionPooler(nn.Module):
    """A sequence of any length to `num_queries` vectors, each read by a learned query.

    CoCa (Yu et al. 2022, arXiv:2205.01917) pools an image once with one query for the contrastive feature and once with
    256 for the captioning decoder.

    Args:
        embed_dim: width E of queries and output.
        num_heads: H, a divisor of E.
        num_queries: how many vectors come out.
        kdim: width of the sequence; E by default.
        attention: "fused" or "eager".
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_queries: int,
        *,
        kdim: int | None = None,
        attention: Attention = "fused",
    ):
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries: expected at least one, got {num_queries}")
        self.queries = nn.Parameter(torch.randn(num_queries, embed_dim) * embed_dim**-0.5)
        self.cross_attention = CrossAttention(embed_dim, num_heads, kdim=kdim, vdim=kdim, attention=attention)

    def forward(
        self, context: Tensor | ContextKV, *, span: KeySpan | None = None, return_map: str | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Read `context`.

        Args:
            context: (B, Sk, kdim), or its keys and values.
            span: which of the sequence's elements are real: ``KeySpan.lengths(lengths)``.
            return_map: as in `CrossAttention`.

        Returns:
            (B, num_queries, E), and the map in a pair with it where one is asked for.
        """
        batch = (context.k if isinstance(context, ContextKV) else context).shape[0]
        queries = self.queries.expand(batch, -1, -1)
        result: Tensor | tuple[Tensor, Tensor] = self.cross_attention(
            queries, context, span=span, return_map=return_map
        )
        return result
