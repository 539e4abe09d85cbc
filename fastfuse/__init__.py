"""Fused cross-modal attention and contrastive similarity for vision-language models."""

__version__ = "0.1.0"
