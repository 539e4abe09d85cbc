"""The machine: its name, the ceiling of its arithmetic and of its memory, and the memory that a call needs."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from fastfuse.backends import cpu
from fastfuse.info import cpu_model

PRODUCT = 2048  # a product of this size is bound by arithmetic
COPY_BYTES = 2**28  # a copy of this size is bound by memory
STATUS = Path("/proc/self/status")


def device_name() -> str:
    """A folder name for this machine: processor, instruction set in use, threads."""
    model = re.sub(r"\((r|tm)\)|processor|cpu|@.*", "", cpu_model().lower())
    isa = [] if cpu.unavailable() else [cpu.isa()]
    return "-".join([*re.findall(r"[a-z0-9]+", model), *isa, str(torch.get_num_threads()), "threads"])


def median_seconds(call: Callable[[], object], rounds: int = 9) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@cache
def flops_ceiling(dtype: torch.dtype) -> float:
    """Operations a second of one big matrix product."""
    a, b = (torch.randn(PRODUCT, PRODUCT).to(dtype) for _ in range(2))
    return 2 * PRODUCT**3 / median_seconds(lambda: a @ b)


@cache
def bytes_ceiling() -> float:
    """Bytes read and written a second by one big copy."""
    source = torch.randint(100, (COPY_BYTES,), dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_seconds(lambda: target.copy_(source))


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
