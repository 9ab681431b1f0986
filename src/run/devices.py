"""What the machine can do, and settings of the process that make it faster."""

import contextlib
import ctypes
import os

import torch

from src.run.errors import UserError

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


def find_device(name):
    """'auto' or a torch device name -> torch.device that exists here; a GPU for each process of torchrun. Raises UserError."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        raise UserError(f"--device {name} is not available here; use --device cpu") from None
    return device
