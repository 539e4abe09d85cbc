"""The contrastive case table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ContrastiveCase:
    """One call of a contrastive loss: sizes and options."""

    name: str
    loss: str  # "clip_loss", ...
    N: int = 37
    M: int = 0  # 0: as N
    D: int = 24
    scale: float = 14.3
    ids: int = 0  # number of distinct ids, 0: none given
    positives: bool = False  # info_nce_loss: random ones, not the diagonal
    label_smoothing: float = 0.0
    normalize: bool = True
    zero_row: bool = False
    paired: float = 0.0  # how much of its own row of a each row of b holds: well separated pairs

    def __str__(self) -> str:
        return self.name


@dataclass
class ContrastiveInputs:
    """Leaves that want gradients in the order of the loss's arguments, and what stays constant."""

    leaves: dict[str, Tensor]  # "a", "b" where the loss has it, "scale", "bias" where it has it
    labels: dict[str, Tensor]
    options: dict[str, Any]


def make_inputs(case: ContrastiveCase, dtype: torch.dtype, device: str = "cpu") -> ContrastiveInputs:
    """Random inputs, the same for every dtype but for rounding. The features are not contiguous."""
    generator = torch.Generator().manual_seed(sum(map(ord, case.name)))
    N, M, D = case.N, case.M or case.N, case.D
    spread = 1.0 if case.normalize else D**-0.5
    a, b = (torch.randn(n, D + 3, generator=generator) * spread for n in (N, M))
    b[: min(N, M)] = (1 - case.paired) * b[: min(N, M)] + case.paired * a[: min(N, M)]
    if case.zero_row:
        a[0] = 0
    a, b = (t.to(device, dtype)[:, :D].requires_grad_() for t in (a, b))
    leaves = {"a": a, "b": b, "scale": torch.tensor(case.scale, device=device, requires_grad=True)}
    if case.loss == "sup_con_loss":
        del leaves["b"]
    if case.loss == "siglip_loss":
        leaves["bias"] = torch.tensor(-7.5, device=device, requires_grad=True)

    def random(limit: int, count: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator).to(device)

    labels = {}
    if case.ids and case.loss == "info_nce_loss":
        labels = {"query_ids": random(case.ids, N), "key_ids": random(case.ids, M)}
    elif case.ids:
        labels = {"ids": random(case.ids, N)}
    if case.positives:
        labels["positives"] = random(M, N)
    options: dict[str, Any] = {} if case.normalize else {"normalize": False}
    if case.label_smoothing:
        options["label_smoothing"] = case.label_smoothing
    return ContrastiveInputs(leaves, labels, options)


def call(function: Any, inputs: ContrastiveInputs, **options: Any) -> Tensor:
    """function: a loss of fastfuse or of eager_contrastive."""
    leaves, labels = dict(inputs.leaves), dict(inputs.labels)
    features = [leaves.pop(name) for name in ("a", "b") if name in leaves]
    if function.__name__ == "sup_con_loss":
        features.append(labels.pop("ids"))
    return function(*features, *leaves.values(), **labels, **inputs.options, **options)


CONTRASTIVE_CASES = [
    ContrastiveCase("clip", "clip_loss"),
    ContrastiveCase("clip_strips", "clip_loss", N=300, D=40),
    ContrastiveCase("clip_wide", "clip_loss", N=66, D=515),
    ContrastiveCase("clip_one", "clip_loss", N=1),
    ContrastiveCase("clip_narrow", "clip_loss", N=20, D=1),
    ContrastiveCase("clip_two_separated", "clip_loss", N=2, D=100, scale=100.0, paired=0.9),
    ContrastiveCase("clip_separated", "clip_loss", N=50, D=64, scale=100.0, paired=0.8),
    ContrastiveCase("clip_scale_100", "clip_loss", N=50, scale=100.0),
    ContrastiveCase("clip_scale_negative", "clip_loss", scale=-3.0),
    ContrastiveCase("clip_scale_zero", "clip_loss", scale=0.0),
    ContrastiveCase("clip_ids", "clip_loss", N=70, ids=9),
    ContrastiveCase("clip_one_id", "clip_loss", N=40, ids=1),
    ContrastiveCase("clip_smooth", "clip_loss", label_smoothing=0.1),
    ContrastiveCase("clip_smooth_ids", "clip_loss", N=140, ids=30, label_smoothing=0.3, scale=100.0),
    ContrastiveCase("clip_more_texts", "clip_loss", N=37, M=150),
    ContrastiveCase("clip_more_images", "clip_loss", N=150, M=37, label_smoothing=0.1),
    ContrastiveCase("clip_raw", "clip_loss", N=45, normalize=False),
    ContrastiveCase("clip_zero_row", "clip_loss", zero_row=True),
    ContrastiveCase("siglip", "siglip_loss"),
    ContrastiveCase("siglip_strips", "siglip_loss", N=290, M=140, D=33),
    ContrastiveCase("siglip_ids", "siglip_loss", N=60, ids=8),
    ContrastiveCase("siglip_separated", "siglip_loss", N=3, D=64, scale=100.0, paired=0.9),
    ContrastiveCase("siglip_raw", "siglip_loss", normalize=False),
    ContrastiveCase("nce", "info_nce_loss", M=90),
    ContrastiveCase("nce_positives", "info_nce_loss", N=50, M=31, positives=True),
    ContrastiveCase("nce_false_negatives", "info_nce_loss", N=3, M=199, D=100, scale=100.0, ids=2, positives=True),
    ContrastiveCase("nce_ids", "info_nce_loss", N=140, M=300, ids=12, positives=True),
    ContrastiveCase("sup_con", "sup_con_loss", N=45, ids=6),
    ContrastiveCase("sup_con_chunks", "sup_con_loss", N=530, ids=20, D=16),
    ContrastiveCase("sup_con_lonely_rows", "sup_con_loss", N=30, ids=40),
    ContrastiveCase("sup_con_one", "sup_con_loss", N=1, ids=1),
    ContrastiveCase("nt_xent", "nt_xent_loss", N=33),
    ContrastiveCase("nt_xent_one", "nt_xent_loss", N=1, scale=100.0),
    ContrastiveCase("nt_xent_separated", "nt_xent_loss", N=3, D=200, scale=100.0, paired=0.9),
    ContrastiveCase("nt_xent_strips", "nt_xent_loss", N=200, D=48, scale=100.0),
]
