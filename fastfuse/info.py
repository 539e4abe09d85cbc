"""What is installed and built here, and which backend serves which op: read from the backends' own declarations."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from itertools import groupby, product
from pathlib import Path

import torch

import fastfuse
from fastfuse.backends import OPS, BackendStatus, Problem, backends, cpu, load, refusals, select
from fastfuse.tuning.preference import passed_over

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEVICES = ("cpu", "cuda")
HEAD_DIMS = range(8, 520, 8)
SERVES = {
    "attention_fwd": "`cross_attention`, `joint_attention`, `scaled_dot_product_attention`",
    "attention_bwd": "their gradients",
    "attention_map": "`return_map`",
    "pair_softmax_fwd": "`clip_loss`, `info_nce_loss`, `sup_con_loss`, `nt_xent_loss`",
    "pair_softmax_bwd": "their gradients",
    "pair_sigmoid": "`siglip_loss` with its gradients",
    "similarity_topk": "`similarity_topk`",
    "retrieval_ranks": "`retrieval_ranks`, `recall_at_k`",
}


def report() -> str:
    """The text of `fastfuse info`."""
    sections = {"": _versions(), "processor": _processor(), "backends": _backends(), "ops": _choices()}
    return "\n\n".join("\n".join([title, *lines] if title else lines) for title, lines in sections.items())


def support_matrix() -> str:
    """A Markdown table: what each backend serves, whether or not this machine can run it."""
    names = [status.name for status in backends()]
    rows = [["for", "op", *(f"`{name}`" for name in names)], ["---"] * (len(names) + 2)]
    rows += [[SERVES[op], f"`{op}`", *(_served(name, op) for name in names)] for op in _dispatched()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _versions() -> list[str]:
    return _columns(
        [
            ("fastfuse", fastfuse.__version__),
            ("python", platform.python_version()),
            ("torch", torch.__version__),
            ("triton", _version("triton")),
            ("numpy", _version("numpy")),
            ("compiled", _compiled()),
        ]
    )


def _version(package: str) -> str:
    return metadata.version(package) if importlib.util.find_spec(package) else "not installed"


def _compiled() -> str:
    specs = [importlib.util.find_spec(f"fastfuse.{name}") for name in ("_C", "_cuda")]
    built = [f"{spec.name} ({Path(spec.origin).name})" for spec in specs if spec and spec.origin]
    return ", ".join(built) or "nothing: fastfuse._C is not built"


def _processor() -> list[str]:
    rows = [("cpu", f"{cpu_model()}, {torch.get_num_threads()} threads")]
    if cpu.unavailable() is None:
        rows += [("kernels", f"{cpu.isa()}, of {' '.join(cpu.isas())} that this machine runs")]
    rows += [(f"cuda:{index}", _gpu(index)) for index in range(torch.cuda.device_count())] or [("cuda", "no GPU")]
    return _columns(rows)


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"


def _backends() -> list[str]:
    return _columns([(status.name, _usability(status)) for status in backends()])


def _usability(status: BackendStatus) -> str:
    if not status.usable:
        return f"not usable: {status.reason}"
    return f'usable, but not by "auto": {status.reason}' if status.reason else "usable"


def _choices() -> list[str]:
    """For each op and device here, the backend that "auto" takes for each dtype, and why not the others."""
    devices = DEVICES if torch.cuda.is_available() else DEVICES[:1]
    rows = []
    for op in _dispatched():
        for device in devices:
            chosen = [(dtype, _problem(op, device, dtype)) for dtype in DTYPES]
            for name, group in groupby(chosen, key=lambda item: select(item[1], "auto").NAME):
                dtypes, problems = zip(*group, strict=True)
                rows.append((op, device, _names(dtypes), name, _others(problems[0], name)))
    rows += [(op, "any", "", "", "one implementation, in torch's own ops") for op in OPS if op not in _dispatched()]
    return _columns(rows)


def _dispatched() -> list[str]:
    """The ops that have a choice of backend."""
    return [op for op, schema in OPS.items() if "str backend" in schema]


def _others(problem: Problem, chosen: str) -> str:
    others = [status for status in backends() if status.name != chosen]
    return ", ".join(f"{status.name}: {_objection(status, problem)}" for status in others)


def _objection(status: BackendStatus, problem: Problem) -> str:
    if not status.usable:
        return "not usable"
    refused = "; ".join(refusals(load(status.name), problem))
    return refused or passed_over(status.name, problem.device, problem.op) or "slower"


def _problem(op: str, device: str, dtype: torch.dtype, head_dim: int = HEAD_DIMS[0]) -> Problem:
    return Problem(op, device, dtype, (head_dim, head_dim) if op.startswith("attention") else ())


def _served(name: str, op: str) -> str:
    """One cell of the matrix: the devices and dtypes for which the backend gives no reason to refuse the op."""
    module = load(name)
    if not hasattr(module, op):
        return "no"
    by_device = {device: _served_dtypes(name, op, device) for device in DEVICES}
    if len(set(by_device.values())) == 1:
        by_device = {"any device": by_device[DEVICES[0]]}
    cells = [f"{device}: {dtypes}" for device, dtypes in by_device.items() if dtypes]
    return "<br>".join(cells + _head_dim_limit(name, op))


def _served_dtypes(name: str, op: str, device: str) -> str:
    return _names(dtype for dtype in DTYPES if not load(name).reasons(_problem(op, device, dtype)))


def _head_dim_limit(name: str, op: str) -> list[str]:
    """["D up to n"] for an attention op with a limit within the sizes asked about."""
    served = [
        size
        for size in HEAD_DIMS
        if any(not load(name).reasons(_problem(op, *kind, size)) for kind in product(DEVICES, DTYPES))
    ]
    return [f"D up to {served[-1]}"] if served[-1] < HEAD_DIMS[-1] else []


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return " ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines of aligned columns."""
    table = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
