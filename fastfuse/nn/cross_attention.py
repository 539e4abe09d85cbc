"""Multi-head attention over a context, drop-in for torch.nn.MultiheadAttention's weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfuse.nn.context_kv import ContextKV, KVCache
from fastfuse.nn.core import Attention, AttentionModule, check_heads, check_sequence, join_heads, split_heads
from fastfuse.span import KeySpan


class CrossAttention(AttentionModule):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) on the fused operation.

    Parameters have the names and shapes of `torch.nn.MultiheadAttention`, so state dicts load both ways. Unlike there,
    `batch_first` is the default, masks are spans and biases, and maps come in the forms of `fastfuse.cross_attention`.

    Args:
        embed_dim: width E of queries and output.
        num_heads: H, a divisor of E.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
        kdim, vdim: widths of keys and values where they differ from E.
        batch_first: (B, S, E) sequences if true, (S, B, E) else.
        attention: "fused" or "eager".
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = True,
        attention: Attention = "fused",
    ):
        super().__init__(attention)
        check_heads(embed_dim, num_heads)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first = batch_first
        self.one_width = self.kdim == self.vdim == embed_dim
        if self.one_width:
            self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        else:
            self.q_proj_weight = nn.Parameter(torch.empty(embed_dim, embed_dim))
            self.k_proj_weight = nn.Parameter(torch.empty(embed_dim, self.kdim))
            self.v_proj_weight = nn.Parameter(torch.empty(embed_dim, self.vdim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch.nn.MultiheadAttention's initialisation: Xavier for what comes in, zero biases."""
        for weight in [self.in_proj_weight] if self.one_width else self.projection_weights():
            nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def projection_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the projections to queries (E, E), keys (E, kdim) and values (E, vdim)."""
        if self.one_width:
            q, k, v = self.in_proj_weight.chunk(3)
            return q, k, v
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def projection_biases(self) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
        """Biases of the same projections, (E,) each, or None."""
        if self.in_proj_bias is None:
            return None, None, None
        q, k, v = self.in_proj_bias.chunk(3)
        return q, k, v

    def key_value_projection(self) -> tuple[Tensor, Tensor | None]:
        """Weight (2 E, kdim) and bias (2 E,) that make keys and values of one context in one product.

        Raises:
            ValueError: keys and values are made of sequences of different widths.
        """
        if self.kdim != self.vdim:
            raise ValueError(f"value: expected (batch, length, {self.vdim}), the context is {self.kdim} wide")
        weight = self.in_proj_weight[self.embed_dim :] if self.one_width else torch.cat(self.projection_weights()[1:])
        return weight, None if self.in_proj_bias is None else self.in_proj_bias[self.embed_dim :]

    def forward(
        self,
        query: Tensor,
        context: Tensor | ContextKV | None = None,
        value: Tensor | None = None,
        *,
        span: KeySpan | None = None,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        cache: KVCache | None = None,
        return_map: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from `query` to `context`.

        Args:
            query: (B, Sq, E).
            context: what keys are made of, (B, Sk, kdim); None attends to the query itself. A `ContextKV` is keys and
                values already made; its batch may be smaller: N = B * beams queries then share it, those of one
                context entry side by side.
            value: what values are made of, (B, Sk, vdim), where it is not the context.
            span: the keys that each query may see. A ContextKV's own span is intersected with it.
            bias: added to the scores, broadcastable to (B, H, Sq, Sk), or bool (False hides). Where beams share a
                context, it must be the same for all queries: (B or 1, H or 1, 1, Sk or 1).
            gate: () or (H,), the heads' outputs are multiplied by tanh(gate).
            cache: keys and values of earlier positions; the new ones are appended to it.
            return_map: "mean", "full" or "keys", see `fastfuse.cross_attention`. Of shared contexts "mean" and "full"
                are (N, ...), "keys" is (B, Sk).

        Returns:
            (B, Sq, E), and the map in a pair with it where one is asked for. With batch_first=False all sequences are
            (S, B, E).

        Raises:
            ValueError: a shape does not fit.
        """
        if not self.batch_first:
            query = query.transpose(0, 1)
            context = context.transpose(0, 1) if isinstance(context, Tensor) else context
            value = None if value is None else value.transpose(0, 1)
        check_sequence("query", query, self.embed_dim)
        rows = query.shape[0]
        if isinstance(context, ContextKV):
            if value is not None or cache is not None:
                raise ValueError("value, cache: expected None, a ContextKV already holds its keys and values")
            query, span = context.stack(query, span, bias)
            q, k, v = self._project_query(query), context.k, context.v
        else:
            q, k, v = self._project(query, context, value)
        if cache is not None:
            k, v = cache.append(k, v)
        dropout_p = self.dropout if self.training else 0.0
        out, weights = self.attend(q, k, v, span=span, bias=bias, gate=gate, dropout_p=dropout_p, return_map=return_map)
        out = self.out_proj(join_heads(out))
        if rows != out.shape[0]:
            out = out.reshape(rows, -1, self.embed_dim)
            weights = _unstack_map(weights, rows)
        if not self.batch_first:
            out = out.transpose(0, 1)
        return out if weights is None else (out, weights)

    def _project_query(self, query: Tensor) -> Tensor:
        return split_heads(F.linear(query, self.projection_weights()[0], self.projection_biases()[0]), self.num_heads)

    def _project(self, query: Tensor, context: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, S, D); what is made of one sequence is made in one product."""
        if context is None and value is None and self.one_width:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)
        context = query if context is None else context
        check_sequence("context", context, self.kdim)
        if value is None:
            k, v = F.linear(context, *self.key_value_projection()).chunk(2, -1)
            return self._project_query(query), split_heads(k, self.num_heads), split_heads(v, self.num_heads)
        check_sequence("value", value, self.vdim)
        _, k_weight, v_weight = self.projection_weights()
        _, k_bias, v_bias = self.projection_biases()
        k = split_heads(F.linear(context, k_weight, k_bias), self.num_heads)
        v = split_heads(F.linear(value, v_weight, v_bias), self.num_heads)
        return self._project_query(query), k, v

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, kdim={self.kdim}, vdim={self.vdim}, {self.attention}"


def _unstack_map(weights: Tensor | None, rows: int) -> Tensor | None:
    """The map of stacked beams in the rows' own order; "keys" (B, Sk) stays as it is."""
    if weights is None or weights.dim() == 2:
        return weights
    beams = rows // weights.shape[0]
    if weights.dim() == 3:
        return weights.reshape(rows, -1, weights.shape[-1])
    return weights.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)
