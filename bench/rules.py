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
    """The kernels' rules for a compute capability and an element size, but those behind others that fit as well."""
    found = []
    for kernel in tuned_kernels():
        for rule in rules(kernel):
            fitting = (other for other in rules(kernel) if other.fits(arch, itemsize, dim_of(kernel, rule)))
            found += [(kernel, rule)] if next(fitting, None) == rule else []
    return found
