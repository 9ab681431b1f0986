"""What several test files need: settings, random episodes, and the scripts called as a user calls them."""

import argparse
import atexit
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.borel.problem import Problem
from src.models.meta_dt import MetaDT
from src.models.world_model import WorldModel
from src.run.config import load_env

ROOT = Path(__file__).resolve().parent.parent
POINT_ROBOT = ROOT / "configs" / "point_robot.yaml"
SCRIPTS = ("train_data_collection", "get_datasets", "train_context", "train_meta_dt")
SAVES = Path("saves", "point_robot", "random")
RESULTS = Path("results", "point_robot", "random")
CONTEXT = SAVES / "context+debug" / "seed_0"
POLICY = SAVES / "meta_dt+debug" / "few_shot" / "seed_0"
KILL = """
import os, runpy, signal, sys
count, sys.argv = int(sys.argv[1]), sys.argv[2:]
flush = os.fsync
def fsync(file):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(file)
os.fsync = fsync
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""  # every artifact is flushed once, just before it gets its name

READY = """
import json, os, runpy, sys
import gymnasium, minari, torch
for line in sys.stdin:
    words, environment, out, err = json.loads(line)
    if os.fork():
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        continue
    for number, name in enumerate((os.devnull, out, err)):
        os.dup2(os.open(name, os.O_RDWR), number)
    sys.stdin = os.fdopen(0)
    os.environ.clear(), os.environ.update(environment)
    del words[0]
    sys.path[0], sys.argv = os.getcwd(), words[words[0] == "-m":]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
    break
"""  # a Python that has loaded the large libraries and nothing of the project; it forks a process for every script


@functools.cache
def ready():
    """The process that `shell` has its processes from: importing torch takes most of a tiny run's time."""
    process = subprocess.Popen([sys.executable, "-c", READY], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.stdin.close)
    return process


def point_robot():
    """EnvConfig of Point-Robot."""
    return load_env("point_robot")


def words(root, *flags):
    """The command line of a tiny run on random data under `root`; later flags win."""
    base = ["--env_type", "point_robot", "--recipe", "debug", "--data_type", "random", "--no-tensorboard"]
    return [*base, "--output_dir", str(root), *flags]


def run_stage(script, root, *flags):
    """Run a script in this process; what its `main` returns."""
    return importlib.import_module(script).main(words(root, *flags))


def shell(script, *argv, **options):
    """Run a script in a process of its own: subprocess.CompletedProcess with text output."""
    command = [sys.executable, *(script.split() if script.startswith("-m") else [f"{script}.py"]), *map(str, argv)]
    if options:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        server = ready()
        server.stdin.write(json.dumps([command, dict(os.environ), out.name, err.name]) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, out.read().decode(), err.read().decode())


def parsed(script, *flags):
    """The namespace that a script would work with."""
    from src.run.command_line import parse_args

    module = importlib.import_module(script)
    return parse_args(module.make_parser(), script, ["--env_type", "point_robot", *flags])


def listing(folder):
    """{relative path: content} of every file below `folder`, and its folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}


def random_episodes(episodes=3, steps=7, observation_size=2, action_size=2, seed=0):
    """observations (E, T + 1, d_s), actions (E, T, d_a), rewards (E, T): unrelated normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((episodes, steps + 1, observation_size), (episodes, steps, action_size), (episodes, steps))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def tiny_world_model(observation_size=2, action_size=2, horizon=4, seed=0, **options):
    """A world model with random weights and biases and a normaliser that does something."""
    torch.manual_seed(seed)
    model = WorldModel(observation_size, action_size, horizon, **options)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    sizes = (observation_size, action_size, 1, observation_size)
    model.set_normaliser(*(3 + 2 * torch.randn(50, size) for size in sizes))
    return model.eval().requires_grad_(False)


def tiny_policy(seed=0, observation_size=2, action_size=2, max_steps=20, **settings):
    """A Meta-DT with random weights, large enough for every input to show in the output; in evaluation mode."""
    torch.manual_seed(seed)
    settings = {"width": 16, "layers": 2, "heads": 2} | settings
    policy = MetaDT(observation_size, action_size, max_steps, 10.0, **settings)
    for parameter in policy.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    policy.set_normaliser(torch.randn(observation_size), 1 + torch.rand(observation_size))
    return policy.eval()


def random_steps(batch, length, observation_size=2, action_size=2, max_steps=20, seed=0, first=0):
    """A batch of consecutive steps as `MetaDT.forward` takes it, nothing masked."""
    generator = torch.Generator().manual_seed(seed)
    steps = {
        name: torch.randn(batch, length, *shape, generator=generator)
        for name, shape in (
            ("returns_to_go", ()),
            ("observations", (observation_size,)),
            ("contexts", (16,)),
            ("actions", (action_size,)),
        )
    }
    timesteps = first + torch.arange(length).expand(batch, -1)
    assert timesteps.max() < max_steps
    return steps | {"timesteps": timesteps, "mask": torch.ones(batch, length, dtype=torch.bool)}


def namespace(**values):
    """argparse.Namespace, for functions of the scripts."""
    return argparse.Namespace(**values)


def same_arrays(a, b):
    """Whether two Trajectories hold the same episodes."""
    names = ("observations", "actions", "rewards", "lengths", "task_ids")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names) and a.tasks == b.tasks


def problem_of(env_type, episodes):
    """The Bayes-adaptive problem of BOReL with so many episodes."""
    return Problem(load_env(env_type), episodes)


def assert_refused(capsys, script, argv, message):
    """`script` ends with status 2 and one line that holds `message`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and lines[-1].startswith("error: ") and message in lines[-1], lines
