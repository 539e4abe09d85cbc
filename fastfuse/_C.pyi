"""What the C++ extension offers (csrc/bindings); absent when it was not built."""

from collections.abc import Callable
from typing import Any

attention: Callable[..., Any]
attention_fwd: Callable[..., Any]
attention_fwd_kept: Callable[..., Any]
attention_bwd: Callable[..., Any]
attention_map: Callable[..., Any]
pair_softmax_fwd: Callable[..., Any]
pair_softmax_fwd_kept: Callable[..., Any]
pair_softmax_bwd: Callable[..., Any]
pair_sigmoid: Callable[..., Any]
scaled: Callable[..., Any]
similarity_topk: Callable[..., Any]
retrieval_ranks: Callable[..., Any]

def cpu_isas() -> list[str]: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def empty_cache() -> None: ...
