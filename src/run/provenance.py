"""Where a number comes from: command, commit, hardware, versions."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from src.run.files import as_utf8

ROOT = Path(__file__).resolve().parents[2]  # of the checkout


def provenance():
    """Where a number comes from: {"command", "commit", "hardware", "versions"}."""
    packages = ("torch", "numpy", "gymnasium", "mujoco", "metaworld", "minari", "stable-baselines3")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"command": command_line(), "commit": git_commit(), "hardware": hardware(), "versions": versions}


def command_line():
    """The command that started this process, with the script's path as the user would type it from the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = f"-m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
    processes = os.environ.get("WORLD_SIZE", "1")
    start = ["python"] if processes == "1" else ["torchrun", "--nproc_per_node", processes]
    return as_utf8(shlex.join([*start, *script.split(), *sys.argv[1:]]))


@functools.lru_cache
def git_commit(root=ROOT):
    """Short hash of the checkout `root`, with "-dirty" when tracked files differ, those under results/ apart, which a run writes
    itself; "unknown" outside git."""
    git = ["git", "-C", str(root)]
    options = {"capture_output": True, "text": True, "timeout": 20}
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], check=True, **options).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!results"], **options).returncode
        return commit + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.lru_cache
def hardware():
    """The kind of processor, the number of cores that this process may use, and the GPU where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}, {cores} cores{gpu}"


def processor():
    """Name of the processor, as Linux tells it where there is one, and the vector instructions that torch uses on it: processors
    of one name may differ in them, and then in the last bits of a sum."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
