"""Which GPU kernels passed their tests on which GPU: "auto" takes no other.

`validated.json` is written by `python -m bench.validate` alone, after the tests passed on the device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "validated.json"
_TRITON = Path(__file__).parents[1] / "kernels"


@dataclass(frozen=True)
class Record:
    """The tests of one backend passed on one device."""

    backend: str
    device: str  # its name, as torch.cuda.get_device_name() has it
    arch: int  # its compute capability, 90 for sm_90
    versions: dict[str, str]  # of torch, Triton, CUDA and the driver
    sources: str  # `sources_hash` of the kernels that ran
    tests: str  # what the tests said
    date: str  # ISO


@cache
def sources_hash(backend: str) -> str:
    """12 hexadecimal digits that change with any kernel source of the backend.

    Of compiled kernels, those that they were built from; empty where they are not built.
    """
    if backend == "cuda":
        from fastfuse.backends import cuda

        return getattr(cuda.extension, "sources", "")
    digest = hashlib.sha256()
    for path in sorted(_TRITON.glob("*.py")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def records() -> tuple[Record, ...]:
    """All records, oldest first."""
    return tuple(Record(**entry) for entry in json.loads(FILE.read_text()))


def unvalidated(backend: str, device: str, arch: int, among: Sequence[Record] | None = None) -> str | None:
    """Why "auto" must not take this backend's kernels on this device, or None where it may.

    A record counts for its device and for others of its compute capability, and for the sources that it was made with.
    """
    found = [record for record in records() if record.backend == backend] if among is None else among
    mine = [record for record in found if record.device == device or record.arch == arch]
    if not mine:
        return f"not validated on {device}"
    if all(record.sources != sources_hash(backend) for record in mine):
        return f"not validated on {device} since its kernels changed"
    return None
