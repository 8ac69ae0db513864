"""The kernels through NVRTC, the compiler that CuPy calls: machine code for real devices, made without one.

By CuPy's own wrapper of it, below the functions which ask a device for its kind.
"""

import re

import pytest

from microumup import cuda

compiler = pytest.importorskip("cupy.cuda.compiler", reason="needs CuPy and NVRTC: pip install 'microumup[gpu-check]'")
SOURCES = sorted(set(cuda.SOURCES.values()))
LIKE_CUPY = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")  # what it adds to the given options


def names(source: str) -> list[str]:
    return re.findall(r"^KERNEL (\w+)", source, re.MULTILINE)


def compiled(source: str, arch: str, method: str, options: tuple[str, ...] = cuda.OPTIONS) -> bytes:
    program = compiler._NVRTCProgram(source, "kernel.cu", method=method)
    return program.compile((*options, f"-arch={arch}", *LIKE_CUPY))[0]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_100"])  # A100, RTX 4090, H100, B200
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: names(source)[0])
def test_the_kernels_compile(source: str, arch: str) -> None:
    code = compiled(source, arch, "cubin")
    assert code.startswith(b"\x7fELF")
    assert all(f".text.{name}".encode() in code for name in names(source))


def test_what_is_no_cuda_does_not_compile() -> None:
    with pytest.raises(compiler.CompileException, match="undefined"):
        compiled(cuda.SOURCES["adamw"].replace("to_g *", "to_h *"), "sm_90", "cubin")


@pytest.mark.parametrize("kernel", ["quantize", "adamw", "residual_add_forward"])
def test_bits_are_not_contracted_away(kernel: str) -> None:
    """A product and a sum are two roundings, division and root are correct ones, and subnormals are flushed."""
    code = compiled(cuda.SOURCES[kernel], "sm_90", "ptx").decode()
    assert "fma" not in code
    assert not re.search(r"(div|sqrt)\.(approx|full)", code)
    of_floats = re.findall(r"\b(?:add|sub|mul|div\.rn|sqrt\.rn)\S*\.f32", code)
    assert of_floats
    assert all(".ftz." in instruction for instruction in of_floats)
    if kernel != "quantize":  # which adds nothing up
        assert "fma" in compiled(cuda.SOURCES[kernel], "sm_90", "ptx", options=()).decode()
