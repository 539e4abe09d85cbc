"""Builds the C++ and CUDA kernels and their bindings; everything else about the package is in pyproject.toml.

The kernels see no torch header. Each instruction set of csrc/cpu becomes a static library of its own, compiled with its
own flags, and one torch extension, ``fastfuse._C``, links them all and chooses at run time. Where nvcc and a torch for
its CUDA are, ``fastfuse._cuda`` has the kernels for Hopper, GPU or not:

    csrc/cpu/isa_<level>*.cpp   -> libfastfuse_cpu_<level>.a   (portable; on x86-64 avx2 to amx too)
    csrc/cpu/*.cpp, the rest    -> libfastfuse_cpu.a           sees FASTFUSE_HAVE_<LEVEL> for each level built
    csrc/bindings/*.cpp         -> fastfuse/_C.*.so            sees them too
    csrc/cuda/*.cu              -> libfastfuse_cuda.a
    csrc/cuda/sources.cpp       -> libfastfuse_cuda_sources.a   what these were built from, for docs/validated.md
    csrc/bindings/cuda_*.cpp    -> fastfuse/_cuda.*.so

Without a working C++ compiler the package installs without either. A compile error is an error.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_clib import build_clib
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
CPU, CUDA, BINDINGS = Path("csrc/cpu"), Path("csrc/cuda"), Path("csrc/bindings")
INCLUDE_DIRS = ["csrc/include", "csrc"]
KERNEL_FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall"]

# GCC, where it is not x86, would else schedule before it gives out registers: the sums of a product then found no room.
PORTABLE = ["-fno-schedule-insns"]
# Lowest first: where two levels emit the same inline function the linker keeps the first, which must run everywhere.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVX512BF16 = [*AVX512, "-mavx512bf16"]
X86_LEVELS = {
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": AVX512BF16,
    "amx": [*AVX512BF16, "-mavx512fp16", "-mamx-tile", "-mamx-bf16"],
}
CUDA_FLAGS = ["-O3", "-std=c++20", "-gencode", "arch=compute_90a,code=sm_90a", "-Xcompiler=-fPIC,-fvisibility=hidden"]
EXTENSION_PROBE = "#include <Python.h>\n#include <concepts>\n#include <vector>\n"
# at::parallel_for is an inline OpenMP loop. Only the compiler is told, never the linker: the runtime has to be the one
# that torch has loaded, which clang's code could not call.
OPENMP_PROBE = "#ifdef __clang__\n#error\n#endif\n"


def compiles(flags: list[str], source: str = "") -> bool:
    """Whether the C++ compiler is there and accepts the flags and the source."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source)
        command = [*compiler(), *flags, "-c", str(path), "-o", f"{path}.o"]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def compiler() -> list[str]:
    return os.environ.get("CXX", "c++").split()


def can_build_extensions() -> bool:
    return os.name == "posix" and compiles(["-std=c++20", "-I" + sysconfig.get_path("include")], EXTENSION_PROBE)


def cpu_levels() -> dict[str, list[str]]:
    """Instruction-set levels to build, with their flags, lowest first."""
    levels = {"portable": PORTABLE if compiles([*PORTABLE, "-Werror"]) else []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        levels |= {name: flags for name, flags in X86_LEVELS.items() if compiles(flags)}
    return {name: flags for name, flags in levels.items() if level_sources(name)}


def level_sources(level: str) -> list[str]:
    return sorted(str(path) for path in [*CPU.glob(f"isa_{level}.cpp"), *CPU.glob(f"isa_{level}_*.cpp")])


def cpu_libraries(levels: dict[str, list[str]]) -> list[tuple[str, dict]]:
    libraries = [(f"fastfuse_cpu_{level}", level_sources(level), flags) for level, flags in levels.items()]
    common = sorted(str(path) for path in CPU.glob("*.cpp") if not path.name.startswith("isa_"))
    if common:
        libraries.insert(0, ("fastfuse_cpu", common, [f"-DFASTFUSE_HAVE_{level.upper()}=1" for level in levels]))
    return [(name, {"sources": sources, "cflags": KERNEL_FLAGS + flags}) for name, sources, flags in libraries]


def cuda_sources_hash() -> str:
    """12 hexadecimal digits that change with any source of fastfuse._cuda."""
    folders = (CUDA, CUDA / "hopper", Path("csrc/include/fastfuse"))
    digest = hashlib.sha256()
    for path in sorted([*(path for folder in folders for path in folder.iterdir()), *BINDINGS.glob("cuda_*")]):
        if path.suffix in (".cu", ".cuh", ".h", ".cpp"):
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cuda_toolkit() -> Path | None:
    """The folder of nvcc's headers and libraries, or None where nvcc or a torch for its CUDA is missing."""
    import torch

    try:
        version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        plan = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    release, top = re.search(r"release (\d+)\.", version), re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    if torch.version.cuda is None or not release or release[1] != torch.version.cuda.partition(".")[0] or not top:
        return None
    return Path(top[1]).resolve()


class NinjaBuildClib(build_clib):
    """Static libraries by ninja: in parallel, and again only what a changed header, source or flag touches."""

    def get_library_names(self) -> list[str]:
        names = super().get_library_names() or []
        return names + names[:1]  # the levels call the common code and the common code calls them

    def build_libraries(self, libraries: list[tuple[str, dict]]) -> None:
        from ninja import BIN_DIR
        from ninja.ninja_syntax import Writer

        objects_dir = Path(self.build_temp, "kernels")
        objects_dir.mkdir(parents=True, exist_ok=True)
        includes = " ".join(f"-I{folder}" for folder in INCLUDE_DIRS)
        with (objects_dir / "build.ninja").open("w") as file:
            ninja = Writer(file, width=120)
            ninja.variable("builddir", str(objects_dir))
            cxx = " ".join([*compiler(), "-MMD -MF $out.d $cflags", os.environ.get("CXXFLAGS", ""), "-c $in -o $out"])
            ninja.rule("cxx", cxx, description="compile $out", depfile="$out.d", deps="gcc")
            nvcc = "nvcc -MD -MF $out.d $cflags -c $in -o $out"
            ninja.rule("nvcc", nvcc, description="compile $out", depfile="$out.d", deps="gcc")
            ninja.rule("ar", f"rm -f $out && {os.environ.get('AR', 'ar')} crs $out $in", description="archive $out")
            for name, info in libraries:
                objects = {str(objects_dir / f"{Path(source).stem}.o"): source for source in info["sources"]}
                variables = {"cflags": f"{' '.join(info['cflags'])} {includes}"}
                for target, source in objects.items():
                    ninja.build([target], "nvcc" if source.endswith(".cu") else "cxx", [source], variables=variables)
                ninja.build([str(Path(self.build_clib, f"lib{name}.a"))], "ar", list(objects))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        if subprocess.run([Path(BIN_DIR, "ninja"), "-f", objects_dir / "build.ninja", *jobs], check=False).returncode:
            raise CompileError("the kernels did not compile, see above")


def extension_arguments() -> dict:
    """Arguments of ``setup`` that build fastfuse._C, and fastfuse._cuda where it can be."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildWithKernels(BuildExtension):
        """Builds the kernels first, also where only build_ext is asked for."""

        def run(self) -> None:
            self.run_command("build_clib")
            super().run()

    levels = cpu_levels()
    openmp = ["-fopenmp"] if compiles(["-fopenmp"], OPENMP_PROBE) else []
    includes = [str(ROOT.resolve() / folder) for folder in INCLUDE_DIRS]
    flags = ["-O2", "-g0", "-fvisibility=hidden", "-Wall"]
    libraries = cpu_libraries(levels)
    bindings, cuda_bindings = ({str(path) for path in BINDINGS.glob(names)} for names in ("*.cpp", "cuda_*.cpp"))
    extensions = [
        CppExtension(
            "fastfuse._C",
            sorted(bindings - cuda_bindings),
            include_dirs=includes,
            define_macros=[(f"FASTFUSE_HAVE_{level.upper()}", "1") for level in levels],
            extra_compile_args=[*flags, *openmp],
        )
    ]
    toolkit = cuda_toolkit()
    if toolkit is not None:
        libraries.append(("fastfuse_cuda", {"sources": sorted(map(str, CUDA.glob("*.cu"))), "cflags": CUDA_FLAGS}))
        sources = [f'-DFASTFUSE_CUDA_SOURCES=\\"{cuda_sources_hash()}\\"']
        libraries.append(
            ("fastfuse_cuda_sources", {"sources": [str(CUDA / "sources.cpp")], "cflags": KERNEL_FLAGS + sources})
        )
        extensions.append(
            CppExtension(
                "fastfuse._cuda",
                sorted(cuda_bindings),
                include_dirs=[*includes, str(toolkit / "include")],
                library_dirs=[str(toolkit / "lib64")],
                libraries=["cudart", "c10_cuda", "torch_cuda"],
                extra_compile_args=flags,
            )
        )
    return {
        "libraries": libraries,
        "ext_modules": extensions,
        "cmdclass": {"build_clib": NinjaBuildClib, "build_ext": BuildWithKernels},
    }


def main() -> None:
    os.chdir(ROOT)
    arguments = {}
    if can_build_extensions():
        arguments = extension_arguments()
    else:
        print(
            f"fastfuse: found no C++ compiler that can build Python extensions (tried {' '.join(compiler())}): the CPU "
            "kernels, fastfuse._C, are not built. The reference and triton backends need none and will serve.",
            file=sys.stderr,
        )
    setup(
        packages=[
            *find_packages(include=["fastfuse", "fastfuse.*"], exclude=["fastfuse.kernels*"]),
            "fastfuse.kernels",
        ],
        package_dir={"fastfuse.kernels": "kernels"},
        package_data={"fastfuse": ["py.typed", "*.pyi", "tuning/*.json", "tuning/rules/*.json"]},
        **arguments,
    )


if __name__ == "__main__":
    main()
