"""Models built from fastfuse's modules."""

from .captioner import PRESETS, Captioner, CaptionerConfig, Losses

__all__ = ["PRESETS", "Captioner", "CaptionerConfig", "Losses"]
