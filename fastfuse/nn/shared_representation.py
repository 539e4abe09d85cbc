"""One space for several modalities, learnt by contrast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastfuse import contrastive as fused
from fastfuse.nn import eager
from fastfuse.nn.core import Attention, AttentionModule

_MAX_SCALE = 100.0


class SharedRepresentation(AttentionModule):
    """Features of several modalities (image, text, audio, ...) projected into one normalised space.

    The loss is CLIP's (Radford et al. 2021, arXiv:2103.00020) or SigLIP's (Zhai et al. 2023, arXiv:2303.15343), with
    learnable scale and, for SigLIP, bias; of three modalities or more, the mean over all pairs of those given.

    Args:
        dims: width of the features of each modality, by its name.
        embed_dim: width of the shared space.
        loss: "clip" or "siglip".
        attention: "fused" computes losses without the (N, N) logits, "eager" through them.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        embed_dim: int,
        *,
        loss: Literal["clip", "siglip"] = "clip",
        attention: Attention = "fused",
    ):
        super().__init__(attention)
        if len(dims) < 2:
            raise ValueError(f"dims: expected at least two modalities, got {list(dims)}")
        if loss not in ("clip", "siglip"):
            raise ValueError(f'loss: expected "clip" or "siglip", got {loss!r}')
        self.loss = loss
        self.projections = nn.ModuleDict({name: nn.Linear(dim, embed_dim, bias=False) for name, dim in dims.items()})
        # Both papers' starting points; the scale is kept as its logarithm so that it stays positive.
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07 if loss == "clip" else 10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if loss == "siglip" else None

    @property
    def logit_scale(self) -> Tensor:
        """The multiplier of cosine similarities, at most 100."""
        return self.log_scale.exp().clamp(max=_MAX_SCALE)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features (..., dims[name]) of any modalities to unit vectors (..., embed_dim), by name.

        Raises:
            KeyError: a modality that the module does not know.
        """
        return {name: F.normalize(projected, dim=-1) for name, projected in self._project(features).items()}

    def contrastive_loss(self, features: Mapping[str, Tensor], *, ids: Tensor | None = None) -> Tensor:
        """How badly rows of different modalities find each other: a scalar, differentiable.

        Args:
            features: (N, dims[name]) of two modalities or more; row n of each belongs together.
            ids: (N,) int64, equal ids belong together, too (several captions of one picture).

        Raises:
            ValueError: fewer than two modalities were given.
            KeyError: a modality that the module does not know.
        """
        if len(features) < 2:
            raise ValueError(f"features: expected at least two modalities, got {list(features)}")
        pairs = list(itertools.combinations(self._project(features).values(), 2))
        return torch.stack([self._pair_loss(a, b, ids) for a, b in pairs]).mean()

    def _pair_loss(self, a: Tensor, b: Tensor, ids: Tensor | None) -> Tensor:
        losses = fused if self.attention == "fused" else eager
        if self.logit_bias is None:
            return losses.clip_loss(a, b, self.logit_scale, ids=ids)
        return losses.siglip_loss(a, b, self.logit_scale, self.logit_bias, ids=ids)

    def _project(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        unknown = set(features) - set(self.projections)
        if unknown:
            raise KeyError(f"features: expected some of {list(self.projections)}, got {sorted(unknown)}")
        return {name: self.projections[name](x) for name, x in features.items()}
