"""What the build and the import promise: light, one OpenMP runtime, kernels that see no torch header."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(code: str) -> str:
    """What the code prints in a fresh interpreter that finds this checkout."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    heavy = ("triton", "click", "matplotlib", "PIL", "sklearn", "tokenizers", "transformers", "tensorboard", "tqdm")
    before = "import sys, torch; before = set(sys.modules);"
    brought = run_python(f"{before} import fastfuse; print(*(set(sys.modules) - before))").split()
    assert not {name.partition(".")[0] for name in brought} & set(heavy)


def test_one_openmp_runtime() -> None:
    """A second pool of threads would fight torch's for the cores."""
    maps = run_python("import fastfuse, fastfuse._C; print(open('/proc/self/maps').read())")
    runtimes = set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)\S*\.so\S*", maps))
    assert len(runtimes) == 1, runtimes


def test_kernels_see_no_torch() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file() and "bindings" not in path.parts]
    assert sources
    seen = [str(path) for path in sources if re.search(r"#include\s*<(torch|ATen|c10|pybind11)/", path.read_text())]
    assert not seen


def test_kernels_are_part_of_the_package() -> None:
    assert run_python("import fastfuse.kernels; print(fastfuse.kernels.__doc__)").strip()


def test_info_needs_torch_alone() -> None:
    hide = "import sys; sys.modules['click'] = None; sys.argv = ['fastfuse', 'info'];"
    assert "backends" in run_python(f"{hide} from fastfuse.__main__ import main; main()")
