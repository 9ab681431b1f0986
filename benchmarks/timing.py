"""How the benchmarks measure: medians over repeats, beside the matmul peak of the same minute and the same threads."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from src.run.devices import keep_memory

PEAK_SIZE = 1024  # of the square matrices; 2.1 GFLOP, small enough to stay in the caches that the policy's products use


def durations(function, budget=4.0, least=5, warmup=3):
    """Seconds of each call of `function`: after `warmup` calls, as many as `budget` seconds allow, but at least `least`."""
    for _ in range(warmup):
        function()
    seconds, end = [], time.perf_counter() + budget
    while len(seconds) < least or time.perf_counter() < end:
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return seconds


def matmul_peak(budget=0.7):
    """{"float32": FLOP/s, "bfloat16": FLOP/s} of a large matrix product, median over repeats."""
    peak = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = durations(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), budget)
        peak[str(dtype).removeprefix("torch.")] = 2 * PEAK_SIZE**3 / statistics.median(seconds)
    return peak


def count_flop(function):
    """Floating-point operations of the matrix products in one call of `function` (what PyTorch's counter sees)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def record(name, seconds, flop, peak, *, unit, aim=None, items=None, **more):
    """One figure.

    Args:
        seconds: list, of every repeat. flop: of one repeat. peak: of `matmul_peak`.
        unit: "ms" or "s" (lower is better), or what `items` counts, per second (higher is better).
        aim: in `unit`. items: how many of them one repeat handles.
    """
    median = statistics.median(seconds)
    scale = {"ms": 1000, "s": 1}.get(unit)
    low, _, high = statistics.quantiles(seconds, n=4)
    values = [scale * s if scale else items / s for s in (median, low, high)]
    figure = {"name": name, "value": _rounded(values[0]), "unit": unit, "quartiles": sorted(map(_rounded, values[1:]))}
    if aim is not None:
        figure |= {"aim": f"{'at most' if scale else 'at least'} {aim:g}", "met": values[0] <= aim if scale else values[0] >= aim}
    shares = {name: round(flop / median / value, 3) for name, value in peak.items()}
    figure |= {"repeats": len(seconds), "gflop": _rounded(flop / 1e9), "gflop_per_s": _rounded(flop / median / 1e9)}
    peaks = {name: _rounded(value / 1e9) for name, value in peak.items()}
    return figure | {"peak_gflop_per_s": peaks, "share_of_peak": shares, **more}


def _rounded(value):
    return float(f"{value:.4g}")


def show(figure):
    """One line: the figure, its aim, its share of both peaks."""
    aim = f" (aim {figure['aim']}: {'met' if figure['met'] else 'MISSED'})" if "aim" in figure else ""
    shares = ", ".join(f"{share:.2f} of the {name} peak" for name, share in figure["share_of_peak"].items())
    extra = ("ratio_to_ours", "times_the_reference", "peak_mib_above_data", "peak_to_data")
    more = "".join(f"; {key} {figure[key]:g}" for key in extra if key in figure)
    print(f"{figure['name']:<42} {figure['value']:>9g} {figure['unit']}{aim}; {shares}{more}", flush=True)


def make_parser(doc):
    """The flag that all benchmarks share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores, help="of PyTorch, %(default)s by default: all cores")
    return parser


def prepare(threads):
    """Settings of this process, the same as those of the training scripts."""
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def apart(module, folder, repeats):
    """What `once(folder)` of a benchmark returns, `repeats` times, each in a process of its own (see `run`)."""
    command = [sys.executable, "-m", module, "--threads", str(torch.get_num_threads()), "--once", folder]
    options = {"capture_output": True, "text": True, "check": True, "stdin": subprocess.DEVNULL}
    return [json.loads(subprocess.run(command, **options).stdout) for _ in range(repeats)]


def run(doc, measure, once=None):
    """`python -m benchmarks.<name>`: measure and print. With --once FOLDER, print what `once(folder)` returns as JSON."""
    parser = make_parser(doc)
    if once:
        parser.add_argument("--once", metavar="FOLDER", help="one repeat on the dataset in FOLDER, printed as JSON")
    args = parser.parse_args()
    prepare(args.threads)
    if once and args.once:
        print(json.dumps(once(args.once)))
        return
    for figure in measure():
        show(figure)
