"""GPUs as this machine has them: which there are, and how they multiply."""

import os
from collections.abc import Sequence

import numpy as np

from microumup.backend import choose_device, to_device, xp_of


def use_tf32(on: bool, device: str) -> None:
    """Let float32 products on a GPU round what they multiply to TF32, or not, in this process from now on.

    Raises ValueError for a CPU, and for a GPU before compute capability 8.0. The environment variable CUPY_TF32 would
    not do: CuPy reads it at the first product alone, and a process of a sweep makes runs with TF32 and without.
    """
    xp = xp_of(to_device(np.zeros(0), device))
    if on and (xp is np or int(xp.cuda.Device().compute_capability) < 80):
        raise ValueError("--tf32: is for a GPU of compute capability 8.0 or more; leave it out")
    if xp is not np:
        products = xp._core._routines_linalg
        products.set_compute_type(np.float32, products.COMPUTE_TYPE_TF32 if on else products.COMPUTE_TYPE_DEFAULT)


def visible(devices: Sequence[int]) -> list[str]:
    """These GPUs, counted from 0 among those that this process sees, in CUDA's words.

    Raises ValueError where one of them does not exist.
    """
    there = xp_of(to_device(np.zeros(0), choose_device("gpu"))).cuda.runtime.getDeviceCount()
    for device in devices:
        if device >= there:
            found = f"{there} of them, 0 to {there - 1}" if there > 1 else "one alone, 0"
            raise ValueError(f"--devices: there is no GPU {device}; CuPy finds {found}")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [names.split(",")[device].strip() if names else str(device) for device in devices]
