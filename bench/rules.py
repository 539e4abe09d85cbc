"""The rules of the Triton kernels' cuts, as the compile gate and the tuner see them."""

from __future__ import annotations

from fastfuse.tuning.tiles import Rule, rules, tuned_kernels

MAX_DIM = {"attention": 256, "pair": 512}  # stands for the rules that go beyond


def family(kernel: str) -> str:
    """Of a kernel with rules: "attention" or "pair"."""
    return "attention" if kernel.startswith("attention") else "pair"


def dim_of(kernel: str, rule: Rule) -> int:
    """The greatest dim to try a rule with."""
    return min(rule.max_dim, MAX_DIM[family(kernel)])


def served(arch: int, itemsize: int) -> list[tuple[str, Rule]]:
    """The kernels' rules for a compute capability and an element size."""
    found = [(kernel, rule) for kernel in tuned_kernels() for rule in rules(kernel)]
    return [(kernel, rule) for kernel, rule in found if rule.fits(arch, itemsize, 1)]
