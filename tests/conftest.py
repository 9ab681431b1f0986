"""Fixtures: one tiny dataset, world model and policy per test process, made by the scripts themselves."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the scripts that tests start; the last bits of a sum depend on it

import pytest
import torch
from helpers import run_stage

torch.set_num_threads(1)


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
