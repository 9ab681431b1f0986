"""What the machine can do, and settings of the process that make it faster."""

import contextlib
import ctypes
import math
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def use_threads(number):
    """Threads of this process: of torch, and of the simulator (envs/mujoco_env.py reads OMP_NUM_THREADS)."""
    torch.set_num_threads(number)
    os.environ["OMP_NUM_THREADS"] = str(number)


def keep_memory():
    """Tell glibc to keep freed memory: by default every large temporary is given back to the kernel and its pages are faulted
    in again by the next operation, which cost half of a training step where we measured it. Without glibc nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def autocast_dtype(precision, device):
    """torch.bfloat16 where `precision` asks for it, or is "auto" and the machine gains from it; None means float32."""
    if precision == "auto":
        capable = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if capable else None
    return torch.bfloat16 if precision == "bfloat16" else None


def schedule_factor(step, steps, warmup, shape):
    """Learning rate of update `step` (from 0) as a share of the base: linear warm-up, then constant or cosine to 5 %."""
    factor = min((step + 1) / warmup, 1.0) if warmup else 1.0
    if shape == "cosine":
        factor *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return factor
