"""fastfuse: fused cross-modal attention and contrastive similarity for PyTorch."""

from fastfuse import reference
from fastfuse.attention import (
    AttentionOutput,
    cross_attention,
    joint_attention,
    merge_attention,
    scaled_dot_product_attention,
)
from fastfuse.backends import backends
from fastfuse.span import KeySpan

__version__ = "0.1.0"

__all__ = [
    "AttentionOutput",
    "KeySpan",
    "backends",
    "cross_attention",
    "joint_attention",
    "merge_attention",
    "reference",
    "scaled_dot_product_attention",
]
