"""Relations between the regions of an image, and between regions and words."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastfuse.nn.core import Attention
from fastfuse.nn.cross_attention import CrossAttention
from fastfuse.span import KeySpan


class RelationOutput(NamedTuple):
    """What `RelationLearning` returns."""

    regions: Tensor  # (B, R, E), each region with what it stands in relation to
    words: Tensor  # (B, S, E), each word with the regions that it speaks of
    region_map: Tensor | None  # (B, R, R) float32, region to region, mean over heads
    word_map: Tensor | None  # (B, S, R) float32, word to region, mean over heads


class RelationLearning(nn.Module):
    """Regions attend to regions by content and geometry, then words attend to the related regions.

        regions' = regions + attention(norm(regions), norm(regions); bias[b, h, i, j] = f_h(geometry of j seen from i))
        words'   = words + attention(norm(words), norm(regions'); bias[b, h, 0, j] = g_h(place and size of j))

    After relation networks (Hu et al. 2018, arXiv:1711.11575): geometry is the offset of centres in units of the
    looking region's size and the ratio of sizes, on a logarithmic scale that keeps the sign, so that "left of" and
    "right of" differ and nearness counts more than distance. f and g are small networks whose gradients come through
    the bias of the attention; their last layers start at 0, so that training starts from content alone.

    Args:
        embed_dim: width E of regions, words and output.
        num_heads: H, a divisor of E.
        hidden_dim: inner width of f and g.
        attention: "fused" or "eager".
    """

    def __init__(self, embed_dim: int, num_heads: int, *, hidden_dim: int = 64, attention: Attention = "fused"):
        super().__init__()
        self.norm_regions = nn.LayerNorm(embed_dim)
        self.norm_related = nn.LayerNorm(embed_dim)
        self.norm_words = nn.LayerNorm(embed_dim)
        self.region_attention = CrossAttention(embed_dim, num_heads, attention=attention)
        self.word_attention = CrossAttention(embed_dim, num_heads, attention=attention)
        self.pair_bias = _bias_network(hidden_dim, num_heads)
        self.place_bias = _bias_network(hidden_dim, num_heads)

    def forward(
        self,
        regions: Tensor,
        boxes: Tensor,
        words: Tensor,
        *,
        span: KeySpan | None = None,
        return_map: bool = False,
    ) -> RelationOutput:
        """Relate.

        Args:
            regions: (B, R, E), features of the image's regions.
            boxes: (B, R, 4), their boxes as x0, y0, x1, y1 in 0 to 1, y pointing down.
            words: (B, S, E).
            span: which regions are real: ``KeySpan.lengths(number_of_regions)``.
            return_map: also return both maps.

        Raises:
            ValueError: boxes do not fit regions, or another shape is off.
        """
        if boxes.shape != (*regions.shape[:2], 4):
            raise ValueError(f"boxes: expected (B, R, 4) for regions {tuple(regions.shape)}, got {tuple(boxes.shape)}")
        form = "mean" if return_map else None
        normed = self.norm_regions(regions)
        pair_bias = self.pair_bias(pair_geometry(boxes)).permute(0, 3, 1, 2)  # (B, H, R, R)
        related, region_map = _pair(self.region_attention(normed, span=span, bias=pair_bias, return_map=form))
        regions = regions + related
        place_bias = self.place_bias(place_geometry(boxes)).transpose(1, 2)[:, :, None]  # (B, H, 1, R)
        seen, word_map = _pair(
            self.word_attention(
                self.norm_words(words), self.norm_related(regions), span=span, bias=place_bias, return_map=form
            )
        )
        return RelationOutput(regions, words + seen, region_map, word_map)


def pair_geometry(boxes: Tensor) -> Tensor:
    """(B, R, 4) boxes to (B, R, R, 4): for i looking at j, offset in x and y, ratio of widths and of heights.

    Offsets are sign(d) log(1 + |d|), d in units of i's width or height; ratios are logarithms.
    """
    centre, size = _centre_and_size(boxes)
    offset = (centre[:, None, :] - centre[:, :, None]) / size[:, :, None]
    ratio = (size[:, None, :] / size[:, :, None]).log()
    return torch.cat([offset.sign() * offset.abs().log1p(), ratio], -1)


def place_geometry(boxes: Tensor) -> Tensor:
    """(B, R, 4) boxes to (B, R, 4): centre in -1 to 1, logarithm of width and of height."""
    centre, size = _centre_and_size(boxes)
    return torch.cat([2 * centre - 1, size.log()], -1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.split(2, -1)
    return (low + high) / 2, (high - low).clamp(min=1e-3)


def _bias_network(hidden_dim: int, num_heads: int) -> nn.Sequential:
    """Four geometry features to one bias a head, 0 at first; a constant would cancel in the softmax, hence none."""
    last = nn.Linear(hidden_dim, num_heads, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(4, hidden_dim), nn.Tanh(), last)


def _pair(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    return result if isinstance(result, tuple) else (result, None)
