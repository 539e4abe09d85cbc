"""Triton kernels (kernels/): any GPU that Triton serves; with TRITON_INTERPRET=1 tensors on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastfuse.tuning.tiles import Tile, tile

if TYPE_CHECKING:
    from fastfuse.backends import Problem
    from fastfuse.kernels.attention_problem import AttentionProblem
    from fastfuse.kernels.pair_features import Side

NAME = "triton"
HEAD_MULTIPLE = 8
MAX_HEAD_DIM = 256
MIN_ARCH = 80
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETED_ARCH, _INTERPRETED_ITEMSIZE = 90, 2  # in the interpreter, tiles are those of 16-bit elements: fewer
_INTERPRETED_PROCESSORS = 132  # and programs are spread over as many multiprocessors
_FEW_QUERIES = 16  # up to so many rows, a tile of its own
_SPLIT_KEYS = 256  # keys that a program should have at least before they are shared out


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    from triton import knobs

    return knobs.runtime.interpret


def arch() -> int:
    """The compute capability to cut tiles for, 90 for sm_90."""
    if interpreting():
        return _INTERPRETED_ARCH
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _itemsize(features: Tensor) -> int:
    """Bytes of an element to cut tiles for."""
    return _INTERPRETED_ITEMSIZE if interpreting() else features.element_size()


def processors() -> int:
    """The number of multiprocessors to spread programs over."""
    if interpreting():
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties().multi_processor_count


def unavailable() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "there is no GPU, and TRITON_INTERPRET=1 is not set"
    return _unloadable() if torch.version.cuda else None


@cache
def _unloadable() -> str | None:
    """Why this driver can not load what the kernels' assembler makes for Hopper, or None."""
    if arch() != 90:
        return None
    from fastfuse.kernels import assembler

    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:  # it has another name here; loading a kernel will tell
        return None
    wanted, there = assembler.version()[0], version.value // 1000
    return None if there >= wanted else f"its code for Hopper needs a driver for CUDA {wanted}, this one is for {there}"


def reasons(problem: Problem) -> list[str]:
    why = []
    if problem.device != "cuda" and not (problem.device == "cpu" and find_spec("triton") and interpreting()):
        why.append(f"tensors are on {problem.device}, it takes cuda, and cpu with TRITON_INTERPRET=1")
    if problem.dtype not in DTYPES:
        why.append(f"dtype is {problem.dtype}, it takes {', '.join(str(d) for d in DTYPES)}")
    if any(n > MAX_HEAD_DIM for n in problem.head_dims):
        why.append(f"head dims are {problem.head_dims}, it takes up to {MAX_HEAD_DIM}")
    return why


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from fastfuse.kernels.attention_fwd import attention_fwd
    from fastfuse.kernels.attention_problem import AttentionProblem

    problem = AttentionProblem(q, k, v, *rest)
    few = problem.rows <= _FEW_QUERIES
    cut = _attention_tile("attention_decode" if few else f"attention_fwd{_kind(problem)}", problem)
    blocks = problem.B * problem.Hk * -(-problem.rows // cut.block_m)
    splits = max(min(processors() // blocks, problem.Sk // _SPLIT_KEYS), 1)
    return attention_fwd(problem, cut, splits)


def attention_bwd(dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from fastfuse.kernels.attention_bwd import attention_bwd
    from fastfuse.kernels.attention_problem import AttentionProblem

    lo, hi, bias, sink, gate, out, lse_pair, *options, needs = rest
    problem = AttentionProblem(q, k, v, lo, hi, bias, sink, gate, *options)
    kind = _kind(problem)
    kernels = (f"attention_dq{kind}", f"attention_dkdv{kind}", "attention_sums")
    cuts = tuple(_attention_tile(kernel, problem) for kernel in kernels)
    return attention_bwd(problem, dout, dlse, out, lse_pair, needs, cuts, processors())


def attention_map(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    from fastfuse.kernels.attention_problem import AttentionProblem
    from fastfuse.kernels.attention_sums import attention_map

    lo, hi, bias, lse_pair, scale, softcap, mode = rest
    problem = AttentionProblem(q, k, None, lo, hi, bias, None, None, scale, softcap)
    return attention_map(problem, lse_pair, mode, _attention_tile("attention_sums", problem), processors())


def _kind(problem: AttentionProblem) -> str:
    """The suffix of the rules where softcap, a bias or dropout fill registers that a larger tile would take."""
    return "" if problem.plain and problem.bias is None and not problem.dropout_p else "_modified"


def _attention_tile(kernel: str, problem: AttentionProblem) -> Tile:
    return tile(kernel, arch(), _itemsize(problem.q), max(problem.D, problem.Dv))


# ---- contrastive and retrieval; arguments as the ops of fastfuse/ops/pair.py and fastfuse/ops/retrieval.py ----


def pair_softmax_fwd(
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    row_key: Tensor,
    col_key: Tensor | None,
    row_skip: Tensor | None,
    col_skip: Tensor | None,
    skip_positives: bool,
    normalize: bool,
    mode: str,
    uniform: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastfuse.kernels.pair_softmax_fwd import pair_softmax_fwd as launch

    if _empty(a, b):
        counts = [
            a.new_zeros(n, dtype=torch.int32) for n in (len(a), len(b) if b is not None and mode == "both" else 0)
        ]
        rows, cols = (scale.new_zeros(4, len(count)) for count in counts)
        return rows, counts[0], cols, counts[1]
    cut = _tile("pair", a)
    skips = None if row_skip is None else _pair(row_skip, col_skip)
    sides = _sides(a, b, normalize, cut)
    return launch(*sides, scale, _pair(row_key, col_key), skips, skip_positives, mode, uniform, cut)


def pair_softmax_bwd(
    unit: Tensor,
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    row_key: Tensor,
    col_key: Tensor | None,
    row_skip: Tensor | None,
    col_skip: Tensor | None,
    skip_positives: bool,
    normalize: bool,
    mode: str,
    label_smoothing: float,
    rows: Tensor,
    row_count: Tensor,
    cols: Tensor,
    col_count: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    from fastfuse.kernels.pair_softmax_bwd import pair_softmax_bwd as launch

    da: Tensor | None
    db: Tensor | None
    if _empty(a, b):
        da, db, dscale = torch.zeros_like(a), None if b is None else torch.zeros_like(b), torch.zeros_like(scale)
    else:
        cut = _tile("pair", a)
        keys, skips = _pair(row_key, col_key), None if row_skip is None else _pair(row_skip, col_skip)
        statistics = rows.contiguous(), row_count, cols.contiguous(), col_count
        sides = _sides(a, b, normalize, cut)
        da, db, dscale = launch(
            unit, *sides, scale, keys, skips, skip_positives, mode, label_smoothing, *statistics, needs, a.dtype, cut
        )
    return _given(da, needs[0], a), _given(db, needs[1], a), _given(dscale, needs[2], scale)


def pair_sigmoid(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    bias: Tensor,
    row_key: Tensor,
    col_key: Tensor | None,
    row_skip: Tensor | None,
    col_skip: Tensor | None,
    skip_positives: bool,
    normalize: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fastfuse.kernels.pair_sigmoid import pair_sigmoid as launch

    grads: Sequence[Tensor | None]
    if _empty(a, b):
        loss, grads = scale.new_zeros(()), [scale.new_zeros(shape) for shape in (a.shape, b.shape, (), ())]
    else:
        cut = _tile("pair", a)
        loss, *grads = launch(*_sides(a, b, normalize, cut), scale, bias, _pair(row_key, col_key), needs[:2], cut)
    da, db, dscale, dbias = (_given(grad, need, scale) for grad, need in zip(grads, needs, strict=True))
    return loss.to(scale.dtype), da, db, dscale, dbias


def similarity_topk(queries: Tensor, keys: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
    from fastfuse.kernels.retrieval_topk import similarity_topk as launch

    if len(queries) == 0:
        return queries.new_empty((0, k), dtype=torch.float32), queries.new_empty((0, k), dtype=torch.int64)
    cut = _tile("retrieval", queries)
    return launch(*_sides(queries, keys, normalize, cut), k, cut)


def retrieval_ranks(
    queries: Tensor, keys: Tensor, positives: Tensor, first: Tensor, last: Tensor, normalize: bool
) -> Tensor:
    from fastfuse.kernels.retrieval_ranks import retrieval_ranks as launch

    if _empty(queries, keys):
        return torch.zeros_like(first)
    cut = _tile("retrieval", queries)
    ranges = first.contiguous(), last.contiguous()
    return launch(*_sides(queries, keys, normalize, cut), positives.contiguous(), *ranges, cut)


def _tile(kernel: str, features: Tensor) -> Tile:
    return tile(kernel, arch(), _itemsize(features), features.shape[1])


def _empty(a: Tensor, b: Tensor | None) -> bool:
    return len(a) == 0 or (b is not None and len(b) == 0)


def _sides(a: Tensor, b: Tensor | None, normalize: bool, cut: Tile) -> tuple[Side, Side]:
    """Both sides as the products take them; one and the same without b."""
    from fastfuse.kernels.pair_features import prepare_features

    block = max(cut.block_m, cut.block_n)
    side = prepare_features(a, normalize, block, cut.block_d)
    return side, side if b is None else prepare_features(b, normalize, block, cut.block_d)


def _pair(rows: Tensor, cols: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels of the rows and of the columns, which without their own have the rows'."""
    return rows.contiguous(), (rows if cols is None else cols).contiguous()


def _given(grad: Tensor | None, need: bool, like: Tensor) -> Tensor:
    """The gradient in the dtype of ``like``; of shape (0,) where it is not needed."""
    return grad.to(like.dtype) if need and grad is not None else like.new_empty(0)
