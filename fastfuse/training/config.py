"""What a training run is told: one frozen dataclass, kept as JSON beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastfuse.nn.core import Attention

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the weights: two runs with equal configs on one machine end with the same bits."""

    data: str = "scenes"  # as fastfuse.data.open_dataset reads it
    preset: str = "demo"  # of CaptionerConfig
    model: Mapping[str, Any] = field(default_factory=dict)  # single fields that replace the preset's
    steps: int = 1000
    batch_size: int = 64  # pictures
    captions_per_image: int = 2
    paraphrases: float = 0.4  # chance that a caption after the first is another than the canonical one
    hide_words: float = 0.6  # share of the steps, from the first on, in which the decoder must look instead of read
    learning_rate: float = 3e-3  # at the end of warm-up; then a cosine to 0
    warmup_steps: int = 50
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    augment: bool = False
    train_size: int | None = None  # pictures an epoch; None: the dataset's default
    seed: int = 0
    attention: Attention = "fused"
    precision: str = "auto"
    checkpoint_every: int = 100  # steps
    evaluate_every: int = 0  # steps between greedy evaluations of held-out pictures; 0: none

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "captions_per_image", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON gives a list

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Read what :meth:`save` wrote."""
        return cls(**json.loads(path.read_text()))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, None for plain float32.

    "auto" takes bfloat16 where the device multiplies it faster: a GPU, or a CPU with AMX. On other CPUs the conversions
    cost more than the products gain.
    """
    if precision == "auto":
        fast = device.type != "cpu" or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return torch.bfloat16 if precision == "bfloat16" else None
