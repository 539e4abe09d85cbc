"""From the results of a GPU, the ops in which the CUDA kernels are ahead of Triton's; the one writer of ahead.json."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from statistics import geometric_mean

from bench.results import OURS, Results, Row
from fastfuse.tuning.ahead import FILE, Lead, leads

OPS = {  # by group of results; what a group of two ops tells counts for the one that takes longer
    "attention fwd": "attention_fwd",
    "decode": "attention_fwd",
    "beams": "attention_fwd",
    "attention fwd+bwd": "attention_bwd",
    "attention options fwd+bwd": "attention_bwd",
    "clip fwd+bwd": "pair_softmax_bwd",
    "info_nce fwd+bwd": "pair_softmax_bwd",
    "nt_xent fwd+bwd": "pair_softmax_bwd",
    "siglip fwd+bwd": "pair_sigmoid",
}


def write_leads(results: Results, device: str) -> Results:
    """Keeps what these results say of this device, instead of what older ones said.

    Returns the results with the backend first that "auto" takes from now on.
    """
    found = leads_of(results, device)
    entries = [asdict(lead) for lead in [*(lead for lead in leads() if lead.device != device), *found]]
    FILE.write_text(json.dumps(entries, indent=1) + "\n")
    leads.cache_clear()
    ahead = {lead.op for lead in found if lead.ratio > 1}
    return replace(results, rows=[_chosen_first(row, ahead) for row in results.rows])


def _chosen_first(row: Row, ahead: set[str]) -> Row:
    name = f"{OURS} {'cuda' if OPS.get(row.group) in ahead else 'triton'}"
    return replace(row, seconds={name: row.seconds[name]} | row.seconds) if name in row.seconds else row


def leads_of(results: Results, device: str) -> list[Lead]:
    """The ops that both backends were timed in."""
    ratios: dict[str, list[float]] = {}
    for row in results.rows:
        op, theirs, ours = OPS.get(row.group), *(row.seconds.get(f"{OURS} {name}") for name in ("triton", "cuda"))
        if op is not None and theirs is not None and ours is not None:
            ratios.setdefault(op, []).append(theirs / ours)
    if "pair_softmax_bwd" in ratios:  # timed together
        ratios["pair_softmax_fwd"] = ratios["pair_softmax_bwd"]
    place = f"{results.path.parent.name}/{results.path.name}"
    return [Lead(op, device, geometric_mean(found), len(found), place) for op, found in ratios.items()]
