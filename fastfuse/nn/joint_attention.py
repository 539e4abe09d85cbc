"""Self-attention over several streams, each with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastfuse import attention as fused
from fastfuse.nn.core import Attention, AttentionModule, check_heads, check_sequence, join_heads, split_heads
from fastfuse.span import KeySpan


class JointAttention(AttentionModule):
    """Every element of every stream (text, image, audio, ...) attends to all elements of all streams.

    MM-DiT (Esser et al. 2024, arXiv:2403.03206): each stream has its own projections, the attention is one. The fused
    operation never concatenates the streams.

    Args:
        dims: width of each stream.
        embed_dim: width E of the attention, shared by all streams.
        num_heads: H, a divisor of E.
        attention: "fused" or "eager".
    """

    def __init__(self, dims: Sequence[int], embed_dim: int, num_heads: int, *, attention: Attention = "fused"):
        super().__init__(attention)
        check_heads(embed_dim, num_heads)
        if not dims:
            raise ValueError("dims: expected the width of at least one stream")
        self.dims = tuple(dims)
        self.num_heads = num_heads
        self.in_proj = nn.ModuleList(nn.Linear(dim, 3 * embed_dim) for dim in dims)
        self.out_proj = nn.ModuleList(nn.Linear(embed_dim, dim) for dim in dims)

    def forward(
        self,
        streams: Sequence[Tensor],
        spans: Sequence[KeySpan | None] | None = None,
        *,
        return_map: bool = False,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Attend jointly.

        Args:
            streams: one (B, S_i, dims[i]) for each stream.
            spans: for each stream the keys of it that queries of any stream may see: ``KeySpan.lengths`` for padding.
                None sees all.
            return_map: also return the probabilities, mean over heads. They are written out in full for this.

        Returns:
            An output (B, S_i, dims[i]) for each stream; with return_map a pair of these and of the maps, each
            (B, S_i, sum of all S_j), keys in the order of the streams, float32.

        Raises:
            ValueError: the number of streams or spans, or a stream's shape, does not fit.
        """
        if len(streams) != len(self.dims):
            raise ValueError(f"streams: expected {len(self.dims)}, got {len(streams)}")
        spans = [None] * len(streams) if spans is None else spans
        if len(spans) != len(streams):
            raise ValueError(f"spans: expected one for each of {len(streams)} streams, got {len(spans)}")
        qs, ks, vs = [], [], []
        for i, (stream, project) in enumerate(zip(streams, self.in_proj, strict=True)):
            check_sequence(f"streams[{i}]", stream, self.dims[i])
            q, k, v = project(stream).chunk(3, -1)
            qs.append(split_heads(q, self.num_heads))
            ks.append(split_heads(k, self.num_heads))
            vs.append(split_heads(v, self.num_heads))
        maps: list[Tensor] = []
        if self.attention == "fused" and not return_map:
            outs = fused.joint_attention(qs, ks, vs, spans)
        else:
            outs, maps = self._attend_to_all(qs, ks, vs, spans)
        results = tuple(project(join_heads(out)) for project, out in zip(self.out_proj, outs, strict=True))
        return (results, tuple(maps)) if return_map else results

    def _attend_to_all(
        self, qs: list[Tensor], ks: list[Tensor], vs: list[Tensor], spans: Sequence[KeySpan | None]
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Outputs and maps by concatenating the streams; the union of their spans is no interval, hence a bool bias."""
        k, v = torch.cat(ks, 2), torch.cat(vs, 2)
        outs, maps = [], []
        for q in qs:
            visible = [_visible(span, q, key.shape[2]) for span, key in zip(spans, ks, strict=True)]
            out, weights = self.attend(q, k, v, bias=torch.cat(visible, -1)[:, None], return_map="mean")
            assert weights is not None
            outs.append(out)
            maps.append(weights)
        return tuple(outs), maps


def _visible(span: KeySpan | None, q: Tensor, keys: int) -> Tensor:
    """What the queries see of one stream: bool (B, Sq, keys)."""
    shape = (q.shape[0], q.shape[2], keys)
    if span is None:
        return torch.ones(shape, dtype=torch.bool, device=q.device)
    return span.to_dense(keys).expand(shape)
