"""Triton kernels for a GPU that is not there: launches are recorded from the real call, then compiled and inspected.

    with recording(90) as launches:
        ff.cross_attention(q, k, v, backend="triton").sum().backward()  # CPU tensors; nothing runs, results are garbage
    reports = [inspect(launch) for launch in launches]

Not with TRITON_INTERPRET=1, under which Triton has no compiler.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from bench.chips import MULTIPROCESSORS, SHARED_KIB, SM_REGISTERS, SM_SHARED_KIB, SM_WARPS
from bench.descriptors import wrong_descriptors
from fastfuse.backends import module_for
from fastfuse.backends import triton as backend

MMA = {"HMMA": r"\bHMMA\.", "HGMMA": r"\bHGMMA\.", "UTCMMA": r"\bUTC\w*MMA\b"}  # sm_80's, sm_90's and sm_100's
SLOW_PRODUCT = r"tt\.dot .*, #ttg\.dot_op.*parent = #blocked"  # in Triton's GPU dialect: made of FMA instructions
WARPGROUP_ROWS = 64  # sm_90's and sm_100's products take that many rows; smaller ones are sm_80's


@dataclass(frozen=True)
class Launch:
    """One specialisation of one kernel: what Triton compiles."""

    arch: int  # 90 for sm_90
    kernel: str  # its full name
    specialization: str  # Triton's own description, JSON


@dataclass(frozen=True)
class Report:
    """What became of a launch."""

    arch: int
    kernel: str  # its name
    dtypes: tuple[str, ...]  # of what its pointers point at
    constants: dict[str, Any]  # the constexpr arguments
    num_warps: int
    num_stages: int
    registers: int = 0  # a thread
    spilled: int = 0  # bytes of local memory a thread
    shared: int = 0  # bytes a block
    products: int = 0  # tl.dot
    slow_products: int = 0  # that FMA instructions make, not the tensor cores
    mma: tuple[str, ...] = ()  # the kinds of matrix instructions in the machine code
    wide: bool = False  # whether a product is of a warpgroup's size
    wrong_descriptors: int = 0  # of operands of products, by a mistake of the assembler
    error: str = ""  # the compiler's, if it refused

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds."""
        by_registers = SM_REGISTERS // (32 * self.num_warps * -(-max(self.registers, 1) // 8) * 8)
        by_shared = SM_SHARED_KIB[self.arch] * 1024 // (self.shared + 1024)
        return min(by_registers, by_shared, SM_WARPS[self.arch] // self.num_warps)

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that are there."""
        return self.blocks * self.num_warps / SM_WARPS[self.arch]

    def faults(self, shared_kib: int | None = None) -> list[str]:
        """Why this must not be launched; shared_kib: of the least of the chips that it is for."""
        if self.error:
            return [self.error]
        limit = shared_kib or SHARED_KIB[self.arch]
        wanted = "HMMA" if self.arch < 90 or not self.wide else "HGMMA" if self.arch < 100 else "UTCMMA"
        found = {
            f"{self.spilled} bytes a thread are spilled": self.spilled > 0,
            f"{self.shared / 1024:.1f} KiB of shared memory, there are {limit}": self.shared > limit * 1024,
            f"{self.slow_products} of {self.products} products are not on the tensor cores": self.slow_products > 0,
            f"no {wanted} in the machine code": self.products > 0 and wanted not in self.mma,
            f"{self.wrong_descriptors} descriptors of operands are wrong": self.wrong_descriptors > 0,
        }
        return [fault for fault, is_so in found.items() if is_so]


@contextmanager
def recording(arch: int) -> Iterator[dict[Launch, None]]:
    """Within it the triton backend takes CPU tensors for this compute capability's; kernels are noted, not run.

    Results are what the memory held. Yields the launches so far, in order, each once.
    """
    launches: dict[Launch, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        launches[Launch(arch, f"{fn.module}:{fn.name}", compile["specialization_data"])] = None
        return True  # so that nothing is compiled, and nothing run

    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS[arch], major=arch // 10, minor=arch % 10)
    with ExitStack() as stack:
        stack.enter_context(_target(arch, "recorder"))  # whose kernels are never compiled, so that each launch is noted
        for owner, name, value in (
            (backend, "unavailable", lambda: None),
            (backend, "reasons", lambda problem: []),
            (torch.cuda, "get_device_capability", lambda *_: (arch // 10, arch % 10)),
            (torch.cuda, "get_device_properties", lambda *_: properties),
            (triton.knobs.runtime, "jit_cache_hook", note),
        ):
            stack.enter_context(patch.object(owner, name, value))
        module_for.cache_clear()
        yield launches
    module_for.cache_clear()


def inspect(launch: Launch) -> Report:
    """Compiles a launch, from Triton's cache if it is there, and reads the machine code."""
    module, _, name = launch.kernel.partition(":")
    described = json.loads(launch.specialization)
    parameters = list(described["signature"])
    report = {
        "arch": launch.arch,
        "kernel": name,
        "dtypes": tuple(dict.fromkeys(t[1:] for t in described["signature"].values() if str(t).startswith("*"))),
        "constants": {
            parameters[key[0]]: value
            for key, value in zip(described["constant_keys"], described["constant_vals"], strict=True)
        },
        "num_warps": described["options"]["num_warps"],
        "num_stages": described["options"]["num_stages"],
    }
    with _target(launch.arch, "compiler"):
        try:
            compiled = getattr(import_module(module), name).preload(launch.specialization)
        except Exception as error:  # the compiler has many
            return Report(**report, error=_root(error))
    usage, code = _disassemble(compiled.asm["cubin"])
    rows = [int(rows) for rows in re.findall(r"tt\.dot .*-> tensor<(?:\d+x)?(\d+)x\d+xf32>", compiled.asm["ttir"])]
    return Report(
        **report,
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        spilled=sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        shared=compiled.metadata.shared,
        products=len(rows),
        slow_products=len(re.findall(SLOW_PRODUCT, compiled.asm["ttgir"])),
        mma=tuple(kind for kind, pattern in MMA.items() if re.search(pattern, code)),
        wide=any(count >= WARPGROUP_ROWS for count in rows),
        wrong_descriptors=wrong_descriptors(code),
    )


def _root(error: BaseException) -> str:
    """What the compiler says of the innermost function that it was in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {getattr(error, 'error_message', None) or str(error).strip()[:500]}"


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """What cuobjdump says of the resources, and the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = ([triton.knobs.nvidia.cuobjdump.path, "-res-usage"], [triton.knobs.nvidia.nvdisasm.path])
        usage, code = (
            subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    return usage, code


@contextmanager
def _target(arch: int, purpose: str) -> Iterator[None]:
    """Within it Triton believes that this GPU is there; what it compiles is kept for the purpose."""
    before = driver._active
    driver.set_active(_offline_driver(arch, purpose))
    try:
        yield
    finally:
        driver.set_active(before)


@cache
def _offline_driver(arch: int, purpose: str) -> Any:
    """As much of a driver as Triton asks to specialise and compile a kernel."""
    return SimpleNamespace(
        get_current_device=lambda: (arch, purpose),
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
    )
