"""What "auto" takes on a GPU: only kernels whose present source passed the tests there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.ahead import leads_of, write_leads
from bench.results import Results, Row
from fastfuse.tuning import ahead, records
from fastfuse.tuning.ahead import Lead
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


CUDA = replace(RECORD, backend="cuda", sources="c0da" * 3)
LEAD = Lead("attention_fwd", "NVIDIA H200", ratio=1.2, cases=9, results="h200/2026-11-24.json")


@pytest.mark.parametrize(
    ("found", "leading", "expected"),
    [
        ([], [LEAD], ("reference",)),
        ([RECORD], [LEAD], ("triton", "reference")),
        ([RECORD, CUDA], [], ("triton", "reference")),
        ([RECORD, CUDA], [replace(LEAD, ratio=0.9)], ("triton", "reference")),
        ([RECORD, CUDA], [replace(LEAD, op="attention_bwd")], ("triton", "reference")),
        ([RECORD, CUDA], [LEAD], ("cuda", "triton", "reference")),
    ],
)
def test_auto_on_a_gpu(
    found: list[Record], leading: list[Lead], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(records, "records", lambda: tuple(found))
    monkeypatch.setattr(records, "sources_hash", {"triton": RECORD.sources, "cuda": CUDA.sources}.get)
    monkeypatch.setattr(ahead, "leads", lambda: tuple(leading))
    assert preference("attention_fwd", "cuda") == expected
    assert preference("attention_fwd", "cpu") == ("cpu", "reference")


def test_what_leads_follows_from_results() -> None:
    def row(group: str, **seconds: float) -> Row:
        named = {f"fastfuse {backend}": time for backend, time in seconds.items()}
        return Row(group, "sizes", "bfloat16", named, {}, 1.0, 1.0, 1.0, {})

    rows = [
        row("attention fwd", triton=4.0, cuda=1.0),
        row("decode", triton=1.0, cuda=1.0),
        row("attention fwd+bwd", triton=1.0),
        row("topk", triton=1.0, cuda=1.0),
    ]
    lead, *others = leads_of(Results("h200", {}, "2026-11-24", rows), "NVIDIA H200")
    assert not others
    assert (lead.op, lead.device, lead.ratio, lead.cases) == ("attention_fwd", "NVIDIA H200", 2.0, 2)


def test_the_chosen_backend_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "ahead.json"
    monkeypatch.setattr("bench.ahead.FILE", kept)
    rows = [
        Row(group, "sizes", "bfloat16", {f"fastfuse {name}": seconds[name] for name in names}, {}, 1.0, 1.0, 1.0, {})
        for group, seconds in (
            ("attention fwd", {"triton": 2.0, "cuda": 1.0}),
            ("siglip fwd+bwd", {"triton": 2.0, "cuda": 4.0}),
        )
        for names in (("triton", "cuda"), ("cuda", "triton"))  # whichever was taken before
    ]
    found = write_leads(Results("h200", {}, "2026-11-24", rows), "NVIDIA H200")
    assert [row.ours for row in found.rows] == ["fastfuse cuda"] * 2 + ["fastfuse triton"] * 2
    assert {lead["op"] for lead in json.loads(kept.read_text()) if lead["device"] == "NVIDIA H200"} == {
        "attention_fwd",
        "pair_sigmoid",
    }


def test_the_file_is_what_the_code_reads() -> None:
    for record in records.records():
        assert len(record.sources) == len(sources_hash("triton"))
