"""For which ops the CUDA kernels were faster than Triton's on a GPU: there "auto" asks them first, elsewhere never.

`ahead.json` is written by `python -m bench` on the GPU, from the results that it keeps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "ahead.json"


@dataclass(frozen=True)
class Lead:
    """How the CUDA kernels fared in one op on one device."""

    op: str
    device: str  # its name, as torch.cuda.get_device_name() has it
    ratio: float  # Triton's time over theirs, geometric mean of the cases
    cases: int
    results: str  # the file under bench/results


@cache
def leads() -> tuple[Lead, ...]:
    """All of them."""
    return tuple(Lead(**entry) for entry in json.loads(FILE.read_text()))


def is_ahead(op: str, device: str, among: Sequence[Lead] | None = None) -> bool:
    """Whether the CUDA kernels are known to be faster than Triton's in the op on the device."""
    found = leads() if among is None else among
    return any(lead.ratio > 1 for lead in found if (lead.op, lead.device) == (op, device))
