"""The dense formulas: slow, readable, differentiable any number of times, right in float64.

They are what every kernel is tested against, and what double backward and forward-mode AD go through.
"""

from fastfuse.reference.attention import attention, attention_bwd, attention_grads, attention_map
from fastfuse.reference.contrastive import (
    compute_dtype,
    pair_sigmoid,
    pair_sigmoid_loss,
    pair_softmax_bwd,
    pair_softmax_fwd,
    pair_softmax_loss,
    positives_and_hidden,
)
from fastfuse.reference.dropout import dropout_mask
from fastfuse.reference.retrieval import retrieval_ranks, similarity_topk

__all__ = [
    "attention",
    "attention_bwd",
    "attention_grads",
    "attention_map",
    "compute_dtype",
    "dropout_mask",
    "pair_sigmoid",
    "pair_sigmoid_loss",
    "pair_softmax_bwd",
    "pair_softmax_fwd",
    "pair_softmax_loss",
    "positives_and_hidden",
    "retrieval_ranks",
    "similarity_topk",
]
