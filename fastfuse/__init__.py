"""fastfuse: fused cross-modal attention and contrastive similarity for PyTorch."""

from fastfuse import nn, reference
from fastfuse.attention import (
    AttentionOutput,
    cross_attention,
    joint_attention,
    merge_attention,
    scaled_dot_product_attention,
)
from fastfuse.backends import backends
from fastfuse.contrastive import clip_loss, info_nce_loss, nt_xent_loss, siglip_loss, sup_con_loss
from fastfuse.linear_cross_entropy import linear_cross_entropy
from fastfuse.retrieval import recall_at_k, retrieval_ranks, similarity_topk
from fastfuse.span import KeySpan

__version__ = "0.1.0"

__all__ = [
    "AttentionOutput",
    "KeySpan",
    "backends",
    "clip_loss",
    "cross_attention",
    "info_nce_loss",
    "joint_attention",
    "linear_cross_entropy",
    "merge_attention",
    "nn",
    "nt_xent_loss",
    "recall_at_k",
    "reference",
    "retrieval_ranks",
    "scaled_dot_product_attention",
    "siglip_loss",
    "similarity_topk",
    "sup_con_loss",
]
