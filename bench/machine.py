"""The machine: its name, what keeps its arithmetic and its memory busy, and the memory that a call needs."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastfuse.backends import cpu
from fastfuse.info import cpu_model

_PRODUCT = 1536
PRODUCT_FLOPS = 2 * _PRODUCT**3
COPY_BYTES = 2 * 2**27
STATUS = Path("/proc/self/status")


def device_name() -> str:
    """A folder name for this machine: processor, instruction set in use, threads."""
    model = re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", cpu_model().lower())
    isa = [] if cpu.unavailable() else [cpu.isa()]
    return "-".join([*re.findall(r"[a-z0-9]+", model), *isa, str(torch.get_num_threads()), "threads"])


@cache
def big_product(dtype: torch.dtype) -> Callable[[], Tensor]:
    """A matrix product that is bound by arithmetic; PRODUCT_FLOPS operations."""
    a, b = (torch.randn(_PRODUCT, _PRODUCT).to(dtype) for _ in range(2))
    return lambda: a @ b


@cache
def big_copy() -> Callable[[], Tensor]:
    """A copy that is bound by memory; COPY_BYTES read and written."""
    source = torch.randint(100, (COPY_BYTES // 2,), dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def peak_mib(call: Callable[[], object]) -> float | None:
    """MiB that the process grows by while the call runs, its results included; None where Linux does not tell.

    Scratch memory that a library keeps from an earlier call is not counted again.
    """
    if not STATUS.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = _status_kib("VmRSS")
    call()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert match, f"{STATUS} has no {field}"
    return int(match.group(1))
