"""Fixtures: one tiny dataset, world model and policy per test process, made by the scripts themselves."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts that tests start; the last bits of a sum depend on it

import pytest
import torch
from borel_helpers import TINY_WIND, shell
from helpers import run_stage

from baselines.borel import hindsight_data_collection
from baselines.borel import train_single_agent as single

torch.set_num_threads(1)
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:  # tests in the background, whose scripts would ignore them, too
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """An output folder with a dataset of random behaviour: 10 episodes of each of Point-Robot's 50 tasks. Read only."""
    root = tmp_path_factory.mktemp("data")
    run_stage("get_datasets", root)
    return root


@pytest.fixture(scope="session")
def model_root(data_root):
    """`data_root` with a world model. Read only."""
    run_stage("train_context", data_root)
    return data_root


@pytest.fixture(scope="session")
def policy_root(model_root):
    """`model_root` with a few-shot policy and its results. Read only."""
    run_stage("train_meta_dt", model_root)
    return model_root


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    """Flags of a gridworld run whose three stages went through the shell, hyphens as published."""
    folder = tmp_path_factory.mktemp("grid")
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(folder), "--tensorboard", "False"]
    shell("baselines.borel.train_single_agent", *flags, "--task-id-start", "0", "--task-id-end", "21")
    done = shell("baselines.borel.train_vae_offline", *flags, "--hindsight-relabelling", "True")
    follow = done.stdout.split("next: python -m ")[1].split()  # the printed command is the next stage
    assert follow[0] == "baselines.borel.train_offline_agent"
    shell(*follow, "--tensorboard", "False")
    return folder, flags


@pytest.fixture(scope="session")
def wind(tmp_path_factory):
    """Flags of a tiny wind problem with logs and replays, whose tasks differ in their dynamics."""
    folder = tmp_path_factory.mktemp("wind")
    (folder / "tiny_wind.yaml").write_text(TINY_WIND)
    flags = ["--config", str(folder / "tiny_wind.yaml"), "--output_dir", str(folder), "--tensorboard", "False"]
    single.main([*flags, "--task-id-start", "0", "--task-id-end", "3"])
    hindsight_data_collection.main(flags)
    return folder, flags
