"""The record of what passed its tests on which GPU: written here alone, and docs/validated.md from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from bench import machine
from fastfuse.tuning.records import FILE, Record, records, sources_hash

DOCUMENT = Path(__file__).parents[1] / "docs" / "validated.md"


def write_record(backend: str, tests: str) -> None:
    """Notes that the tests of a backend passed on the GPU that is here; a record of the same device gives way."""
    major, minor = torch.cuda.get_device_capability()
    device = torch.cuda.get_device_name()
    record = Record(
        backend,
        device,
        10 * major + minor,
        machine.versions(),
        sources_hash(backend),
        tests,
        date.today().isoformat(),
    )
    kept = [old for old in records() if (old.backend, old.device) != (backend, device)]
    FILE.write_text(json.dumps([asdict(each) for each in [*kept, record]], indent=1) + "\n")
    records.cache_clear()
    DOCUMENT.write_text(document())


def document() -> str:
    """The text of docs/validated.md."""
    rows = [
        ["backend", "device", "versions", "kernel sources", "tests", "date"],
        ["---"] * 6,
        *(_cells(record) for record in records()),
    ]
    lines = [
        "# What ran on real hardware",
        "",
        "`make gpu` writes this from `fastfuse/tuning/validated.json`, after the tests passed on the device. On a GPU",
        'for which, or for whose compute capability, no line has the present kernel sources, `backend="auto"` does not',
        "pick these kernels; `fastfuse info` says so.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    if not records():
        lines += [
            "No GPU has run these kernels yet. What is known without one: every Triton kernel passes the tests in",
            "Triton's interpreter (`make test`), and compiles for sm_80, sm_90 and sm_100 within their limits",
            "(`make gate`, [performance/triton-static.md](performance/triton-static.md)). Every CUDA kernel passes the",
            "tests on an emulation of the hardware, and compiles for sm_90a without spills (`make test`,",
            "[hopper.md](hopper.md)).",
            "",
        ]
    lines += [
        "The C++ CPU kernels are validated on every machine that runs `make test`, on each instruction set it has;",
        "`make test-isa` runs the others in plain C++ ([building.md](building.md)).",
        "",
    ]
    return "\n".join(lines)


def _cells(record: Record) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    device = f"{record.device} (sm_{record.arch})"
    return [f"`{record.backend}`", device, versions, f"`{record.sources}`", record.tests, record.date]
