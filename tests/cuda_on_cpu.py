"""CUDA kernels run by the processor: `RawKernel` stands in for CuPy's, as far as `microumup.cuda` needs it.

The source is compiled by g++ behind a page of definitions. The threads of a block are fibers that take turns and change
over at each __syncthreads(), first to last, so that a missing barrier shows as a wrong result, and a barrier that only
some threads reach as an error. Arithmetic is that of the device as CuPy compiles for it: no contraction, and subnormal
float32 are zeros (FLUSH). expf, logf and tanhf are the C library's.

It is strict where a device would compute nonsense: arrays have to be the double's, contiguous and of the type that the
source says, numbers of NumPy's type for it. Each array lies between margins of NaN, with bits of its own, so that not
even a NaN from elsewhere may be written there. A test that needs a kernel is skipped where there is no g++.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

COMPILER = shutil.which("g++")
FLUSH = True  # subnormals to zero, as by -ftz=true
most_threads = 8  # of a block; more of them take turns for long. Kernels run with any power of two
counts: Counter[str] = Counter()  # of launches, by kernel

TYPES = {"float": np.float32, "long long": np.int64}
MARGIN = 64  # elements around an array

DEFINITIONS = r"""
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif
extern "C" { float expf(float); float logf(float); float tanhf(float); float sqrtf(float); float rintf(float);
             float fminf(float, float); float fmaxf(float, float); }
#define __global__
#define __device__ static
#define __shared__ static
struct Dim { unsigned x; };
static Dim blockIdx, threadIdx, blockDim, gridDim;
static unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
static float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
static ucontext_t conductor, fibers[1024];
static bool ended[1024];
static void __syncthreads() { if (blockDim.x > 1) swapcontext(&fibers[threadIdx.x], &conductor); }
"""

RUN = r"""
static void **arguments;
static void (*body)();
static void fiber() { body(); ended[threadIdx.x] = true; }

static bool block(char *stacks, size_t size) {
    for (unsigned t = 0; t < blockDim.x; t++) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks + t * size;
        fibers[t].uc_stack.ss_size = size;
        fibers[t].uc_link = &conductor;
        ended[t] = false;
        makecontext(&fibers[t], fiber, 0);
    }
    for (unsigned running = blockDim.x; running;) {
        if (running != blockDim.x) return false;  // some wait at a barrier that others never reach
        for (unsigned t = 0; t < blockDim.x; t++) {
            threadIdx.x = t;
            swapcontext(&conductor, &fibers[t]);
            running -= ended[t];
        }
    }
    return true;
}

BODIES

extern "C" bool launch(unsigned kernel, unsigned blocks, unsigned threads, void **args, bool flush) {
    const size_t size = 1 << 16;
    arguments = args, body = bodies[kernel], gridDim.x = blocks, blockDim.x = threads;
    char *stacks = (char *)malloc(threads * size);
    bool fine = true;
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    if (flush) _mm_setcsr(before | 0x8040);
#endif
    for (blockIdx.x = 0; blockIdx.x < blocks && fine; blockIdx.x++) {
        threadIdx.x = 0;
        if (threads == 1) body(); else fine = block(stacks, size);
    }
#ifdef __SSE__
    _mm_setcsr(before);
#endif
    free(stacks);
    return fine;
}
"""

_folder = tempfile.TemporaryDirectory(prefix="microumup-kernels-")


def kernels(source):
    """(const, C type, whether it is a pointer) of each parameter, by kernel."""
    found = {}
    for name, declared in re.findall(r"KERNEL (\w+)\(([^)]*)\)", source):
        matches = [re.fullmatch(r"\s*(const )?(float|long long) (\*?)\w+\s*", text) for text in declared.split(",")]
        found[name] = [(bool(m[1]), m[2], bool(m[3])) for m in matches]
    return found


@cache
def compiled(source):
    """The function `launch` for the kernels of a source. Raises CalledProcessError for what is no C++."""
    calls = []
    for name, declared in kernels(source).items():
        values = [f"*({c} {'*' * (1 + pointer)})arguments[{i}]" for i, (_, c, pointer) in enumerate(declared)]
        calls.append(f"{name}({', '.join(values)})")
    bodies = ", ".join(f"[] {{ {call}; }}" for call in calls)
    text = DEFINITIONS + source + RUN.replace("BODIES", f"static void (*bodies[])() = {{ {bodies} }};")
    library = Path(_folder.name, f"{len(list(Path(_folder.name).iterdir()))}.so")
    flags = ["-O1", "-fPIC", "-shared", "-ffp-contract=off", "-w", "-xc++", "-", "-o"]
    subprocess.run([COMPILER, *flags, library], input=text, text=True, check=True)
    launch = ctypes.CDLL(str(library)).launch
    launch.restype = ctypes.c_bool
    return launch


class RawKernel:
    def __init__(self, code, name, options=()):
        if not COMPILER:
            pytest.skip("kernels run on a CPU only where there is g++")
        assert "--fmad=false" in options
        self.name, self.parameters, self._launch = name, kernels(code)[name], compiled(code)
        self._which = list(kernels(code)).index(name)

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert len(args) == len(self.parameters), f"{self.name} takes {len(self.parameters)} arguments"
        counts[self.name] += 1
        arrays, values = [], []
        for i, (arg, (constant, c, pointer)) in enumerate(zip(args, self.parameters, strict=True)):
            if not pointer:
                assert type(arg) is TYPES[c], f"{self.name}: {arg!r} is no {c}"
                values.append(np.array([arg]))
                continue
            host = arg._host  # of nothing but the double's arrays
            assert host.dtype == TYPES[c], f"{self.name}: {host.dtype} is no {c}"
            assert host.flags.c_contiguous, f"{self.name}: an array is not contiguous"
            margin = np.full(MARGIN * host.itemsize // 4, 0x7FC0DE00 + i, np.uint32).view(host.dtype)
            room = np.concatenate((margin, host.ravel(), margin))
            arrays.append((host, room, margin.tobytes(), constant))
            values.append(np.array([room.ctypes.data + margin.nbytes]))
        (blocks,), (threads,) = grid, block
        assert blocks > 0, f"{self.name}: no blocks"
        assert threads in (32, 64, 128, 256), f"{self.name}: {threads} threads"
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        fine = self._launch(self._which, blocks, min(threads, most_threads), pointers, FLUSH)
        assert fine, f"{self.name}: a barrier that only some threads reach"
        for host, room, margin, constant in arrays:
            ends = room[:MARGIN].tobytes(), room[-MARGIN:].tobytes()
            assert ends == (margin, margin), f"{self.name}: written out of bounds"
            if not constant:
                host[...] = room[MARGIN:-MARGIN].reshape(host.shape)
