"""Instruction set of the CPU kernels, chosen before the libraries that contain the kernels are imported.

ATen, MKL, oneDNN, OpenBLAS and NumPy choose kernels by the CPU, and kernels of different widths round differently.
Their environment variables limit the choice to AVX2, which every x86-64 CPU of the last ten years supports, so that a
job gives the same bits on CPUs with and without AVX-512. docs/explanation/reproducibility.md lists where this was
verified.

Each library reads its variable once, so it must be set before the first import of torch or NumPy. Therefore the `isp`
command sets the variables, never `import isp`. Only light modules are imported at the top, because each job's client
of the fork server imports this module: no pathlib, platform or ctypes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, get_args

from isp.errors import ConfigError

InstructionSet = Literal["avx2", "native"]
"""avx2: AVX2 kernels on every x86-64 CPU. native: the kernels that the libraries choose for the CPU."""

VARIABLES: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512F,AVX512CD,AVX512_SKX,AVX512_CLX,AVX512_CNL,AVX512_ICL,AVX512_SPR",
}
"""Environment variables of "avx2". NumPy ignores names of features that its version does not know."""

SERVED = "ISP_WARM_INSTRUCTION_SET"
"""Environment variable with the instruction set of the fork server at ISP_WARM. Default: native."""

_OPTION = "--instruction-set"
_MKL_BRANCHES = {1: "off", 2: "AUTO", 3: "COMPATIBLE", 9: "AVX", 10: "AVX2", 12: "AVX512", 14: "AVX512_E1"}
"""Names of the return values of `mkl_cbwr_get`, from MKL's reference manual."""
_CPUINFO = "/proc/cpuinfo"


def variables(chosen: str | None) -> Mapping[str, str]:
    """Return the environment variables to set for an instruction set; none for "native", which keeps the user's."""
    return VARIABLES if chosen == "avx2" else {}


def choose(arguments: Sequence[str]) -> InstructionSet | None:
    """Return the instruction set for a call of `isp`. None if it does not compute, or uses the one in force.

    The default of a stage that computes is "avx2" for float32 on a CPU that supports it, and "native" otherwise: with a
    GPU, the CPU computes next to nothing, and bf16 needs units that AVX2 lacks.

    Args:
        arguments: Command line without the name of the program.

    Raises:
        ConfigError: The option has an invalid value, or requests AVX2 on a CPU without it.
    """
    given = _values(arguments, _OPTION)
    stage = arguments[0] if arguments else ""
    if stage == "run" or not _computes(stage):
        return None
    if given:
        if given[-1] not in get_args(InstructionSet):
            raise ConfigError(f"{_OPTION} must be {' or '.join(get_args(InstructionSet))}, got {given[-1]!r}")
        if given[-1] == "avx2":
            check_supported(f"{_OPTION} native")
        return "avx2" if given[-1] == "avx2" else "native"
    on_gpu = any(device != "cpu" for device in _values(arguments, "--device"))
    in_bf16 = any("bf16" in protocol for protocol in _values(arguments, "--training"))
    return "avx2" if is_supported() and not on_gpu and not in_bf16 else "native"


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """Return the values of an option, given as `--option VALUE` or `--option=VALUE`."""
    pairs = itertools.pairwise(arguments)
    joined = [word.partition("=")[2] for word in arguments if word.startswith(f"{option}=")]
    return [value for word, value in pairs if word == option] + joined


def _computes(stage: str) -> bool:
    """Return whether a command is a stage with the option, from its source, because importing it imports torch."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(package, "stages", f"{stage}.py")
    if not (stage.isidentifier() and os.path.isfile(path)):
        return False
    with open(path, encoding="utf-8") as file:
        return "InstructionSet" in file.read()


def _machine() -> str:
    """Return the architecture of this machine, such as "x86_64", or "" if it is unknown."""
    if hasattr(os, "uname"):
        return os.uname().machine
    import platform

    return platform.machine()


def is_supported() -> bool:
    """Return whether this machine's CPU can run AVX2 kernels (which also use FMA)."""
    if _machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        with open(_CPUINFO, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:  # not Linux
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {"avx2", "fma"} <= set(flags)


def default() -> InstructionSet:
    """Return the default instruction set of a study: "avx2" if this machine's CPU supports it, otherwise "native"."""
    return "avx2" if is_supported() else "native"


def check_supported(remedy: str) -> None:
    """Check that this CPU supports AVX2.

    Args:
        remedy: Setting that the error message recommends.

    Raises:
        ConfigError: The CPU does not support AVX2.
    """
    if not is_supported():
        raise ConfigError(
            f"instruction set avx2: this CPU ({_machine() or 'unknown'}) does not have AVX2 and FMA; set "
            f"{remedy}. Results are then equal to the bit only on the same type of CPU"
        )


def in_force() -> InstructionSet:
    """Return the instruction set with which this process computes. Imports torch.

    It is "avx2" only if ATen reports its AVX2 kernels and all variables are set. Whether MKL obeys its variable is not
    considered, because MKL ignores it on CPUs that are not made by Intel; see `mkl_branch`.
    """
    import torch

    set_ = all(os.environ.get(name) == value for name, value in VARIABLES.items())
    return "avx2" if set_ and torch.backends.cpu.get_cpu_capability() == "AVX2" else "native"


def check_in_force(asked: str | None) -> None:
    """Check that this process computes with the requested kernels.

    Raises:
        ConfigError: torch was imported with other kernels.
    """
    if asked == "avx2" and in_force() != "avx2":
        import torch

        kernels = torch.backends.cpu.get_cpu_capability()
        raise ConfigError(
            f"{_OPTION} avx2: torch was imported in this process without the AVX2 variables (its kernels: {kernels}); "
            f"run the stage with the command `isp`, or set {' '.join(VARIABLES)} before Python starts"
        )


@cache
def mkl_branch() -> str:
    """Return the kernel branch that MKL uses, or why it is not known. Imports torch.

    On Intel CPUs, it is the branch that MKL_CBWR names, or "off". On other CPUs, MKL ignores the name and uses AUTO.
    """
    import ctypes

    import torch

    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return "no MKL"
    try:
        library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
        branch = library.mkl_serv_cbwr_get(1)
    except (OSError, AttributeError):  # MKL is a separate library
        return "unknown"
    return _MKL_BRANCHES.get(branch, str(branch))
