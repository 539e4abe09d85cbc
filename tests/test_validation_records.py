"""What "auto" takes on a GPU: only kernels whose present source passed the tests there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastfuse.tuning import records
from fastfuse.tuning.preference import preference
from fastfuse.tuning.records import Record, sources_hash, unvalidated

RECORD = Record("triton", "NVIDIA H200", 90, {"torch": "2.11.0"}, sources_hash("triton"), "900 passed", "2026-11-24")


def test_the_device_or_its_compute_capability_counts() -> None:
    assert unvalidated("triton", "NVIDIA H200", 90, [RECORD]) is None
    assert unvalidated("triton", "NVIDIA H100 80GB HBM3", 90, [RECORD]) is None
    assert unvalidated("triton", "NVIDIA A100", 80, [RECORD]) == "not validated on NVIDIA A100"
    assert unvalidated("triton", "NVIDIA H200", 90, []) == "not validated on NVIDIA H200"


def test_other_sources_do_not_count() -> None:
    old = replace(RECORD, sources="0" * 12)
    assert unvalidated("triton", "NVIDIA H200", 90, [old]) == "not validated on NVIDIA H200 since its kernels changed"
    assert unvalidated("triton", "NVIDIA H200", 90, [old, RECORD]) is None


@pytest.mark.parametrize(("found", "expected"), [([], ("reference",)), ([RECORD], ("triton", "reference"))])
def test_auto_on_a_gpu(found: list[Record], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(records, "records", lambda: tuple(found))
    assert preference("attention_fwd", "cuda") == expected
    assert preference("attention_fwd", "cpu") == ("cpu", "reference")


def test_the_file_is_what_the_code_reads() -> None:
    for record in records.records():
        assert len(record.sources) == len(sources_hash(record.backend))
