"""The dense formulas: slow, readable, differentiable any number of times, right in float64.

They are what every kernel is tested against, and what double backward and forward-mode AD go through.
"""

from fastfuse.reference.attention import attention, attention_bwd, attention_grads, attention_map
from fastfuse.reference.dropout import dropout_mask

__all__ = ["attention", "attention_bwd", "attention_grads", "attention_map", "dropout_mask"]
