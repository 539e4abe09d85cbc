"""Which calls must go through the dense formula: forward-mode AD and vmap, which a fused op has no rule for."""

from __future__ import annotations

import torch
from torch._C import _functorch
from torch.autograd import forward_ad


def needs_formula() -> bool:
    """True under `torch.func.jvp`, `vmap` and friends or a dual level; reverse mode (`torch.func.grad`) stays fused."""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    stack = _functorch.get_interpreter_stack()
    return stack is not None and any(level.key() != _functorch.TransformType.Grad for level in stack)
