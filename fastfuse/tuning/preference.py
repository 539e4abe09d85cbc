"""The order in which "auto" asks the backends, fastest first.

cpu over reference: `make bench` (docs/performance.md).
"""

from __future__ import annotations


def preference(op: str, device: str) -> tuple[str, ...]:
    """Backend names for an op on a device type, fastest first; `reference` serves everything and stands last."""
    return ("cpu", "reference") if device == "cpu" else ("reference",)
