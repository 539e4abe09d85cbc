"""The order in which "auto" asks the backends, fastest first.

cpu over reference: `make bench` (docs/performance.md). triton over reference: where its kernels passed their tests.
cuda over triton: where its kernels passed theirs too and were measured to be ahead.
"""

from __future__ import annotations

import torch

from fastfuse.tuning.ahead import is_ahead
from fastfuse.tuning.records import unvalidated

_ON_GPU = ("cuda", "triton")


def preference(op: str, device: str) -> tuple[str, ...]:
    """Backend names for an op on a device type, fastest first; `reference` serves everything and stands last."""
    if device == "cpu":
        return ("cpu", "reference")
    return (*(name for name in _ON_GPU if passed_over(name, device, op) is None), "reference")


def passed_over(backend: str, device: str, op: str | None = None) -> str | None:
    """Why "auto" does not ask a backend on a device type, for the op or at all, or None where it does."""
    if backend not in _ON_GPU or device != "cuda" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    if backend == "cuda" and op is not None and not is_ahead(op, name):
        return f"not measured to be faster than triton on {name}"
    major, minor = torch.cuda.get_device_capability()
    return unvalidated(backend, name, 10 * major + minor)
