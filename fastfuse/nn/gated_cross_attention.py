"""Flamingo's gated cross-attention layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastfuse.nn.context_kv import ContextKV
from fastfuse.nn.core import Attention
from fastfuse.nn.cross_attention import CrossAttention
from fastfuse.span import KeySpan


class GatedCrossAttention(nn.Module):
    """A layer that lets a language model look at pictures, and that is the identity when training starts.

        y = x + tanh(a) attention(norm(x), media)
        z = y + tanh(b) mlp(norm(y))

    Flamingo (Alayrac et al. 2022, arXiv:2204.14198). The gates a (one a head) and b start at 0. The attention's gate is
    applied inside the fused operation; its projections have no biases, so nothing goes past it.

    Args:
        embed_dim: width E of the text.
        num_heads: H, a divisor of E.
        media_dim: width M of the pictures' tokens; E by default.
        mlp_ratio: inner width of the mlp in units of E.
        attention: "fused" or "eager".
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        media_dim: int | None = None,
        *,
        mlp_ratio: float = 4.0,
        attention: Attention = "fused",
    ):
        super().__init__()
        self.norm_attention = nn.LayerNorm(embed_dim)
        self.cross_attention = CrossAttention(
            embed_dim, num_heads, bias=False, kdim=media_dim, vdim=media_dim, attention=attention
        )
        self.attention_gate = nn.Parameter(torch.zeros(num_heads))
        inner = int(mlp_ratio * embed_dim)
        self.norm_mlp = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, inner, bias=False), nn.GELU(), nn.Linear(inner, embed_dim, bias=False)
        )
        self.mlp_gate = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        text: Tensor,
        media: Tensor | ContextKV,
        *,
        span: KeySpan | None = None,
        return_map: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Let the text look at the media.

        Args:
            text: (B, S, E).
            media: tokens of all pictures of a text in a row, (B, Sk, M), or their keys and values.
            span: which pictures a word may see. Flamingo's rule, the last picture before it and nothing before the
                first, is ``KeySpan.latest_media(media_index, media_offsets)``: media_index (B, S) counts the pictures
                up to each word, less one; media_offsets (n + 1,) says where each picture's tokens begin.
            return_map: as in `CrossAttention`; the map is that before the gate.

        Returns:
            (B, S, E), and the map in a pair with it where one is asked for.
        """
        result = self.cross_attention(
            self.norm_attention(text), media, span=span, gate=self.attention_gate, return_map=return_map
        )
        seen, weights = result if return_map is not None else (result, None)
        text = text + seen
        text = text + self.mlp_gate.tanh() * self.mlp(self.norm_mlp(text))
        return text if weights is None else (text, weights)
