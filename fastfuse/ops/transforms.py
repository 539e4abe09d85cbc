"""How a call reaches its kernel: straight, through the dispatcher, or through the dense formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _functorch, _len_torch_dispatch_stack
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(tensor: Tensor) -> bool:
    """True when nobody watches the call (tracing, modes, transforms, subclasses): the dispatcher can be skipped."""
    return (
        not is_compiling()
        and type(tensor) in _PLAIN
        and _len_torch_dispatch_stack() == 0
        and not _are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def needs_formula() -> bool:
    """True under `torch.func.jvp`, `vmap` and friends or a dual level: a fused op has no rule for them.

    Reverse mode (`torch.func.grad`) stays fused. Never where `is_plain`.
    """
    if is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    stack = _functorch.get_interpreter_stack()
    return stack is not None and any(level.key() != _functorch.TransformType.Grad for level in stack)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`; where nobody watches, without its inspect.signature, slower than a small kernel."""
    if is_plain(args[0]):
        return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]
    return function.apply(*args)
