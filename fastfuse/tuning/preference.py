"""The order in which "auto" asks the backends, fastest first.

cpu over reference: `make bench` (docs/performance.md). triton over reference: where its kernels passed their tests.
"""

from __future__ import annotations

import torch

from fastfuse.tuning.records import unvalidated

_ON_GPU = ("triton",)  # fastest first


def preference(op: str, device: str) -> tuple[str, ...]:
    """Backend names for an op on a device type, fastest first; `reference` serves everything and stands last."""
    if device == "cpu":
        return ("cpu", "reference")
    return (*(name for name in _ON_GPU if passed_over(name, device) is None), "reference")


def passed_over(backend: str, device: str) -> str | None:
    """Why "auto" does not ask a backend on a device type at all, or None where it does."""
    if backend not in _ON_GPU or device != "cuda" or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return unvalidated(backend, torch.cuda.get_device_name(), 10 * major + minor)
