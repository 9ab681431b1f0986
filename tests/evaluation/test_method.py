"""What every method shares, shown by a new one: behaviour cloning as one short file (tests/toy/bc.py)."""

import contextlib
import shutil
import types

import numpy as np
import pytest
import torch
from helpers import RESULTS, ROOT, SAVES, same_arrays, shell, words

from src.data import trajectories
from src.evaluation import method
from src.evaluation.method import RunSettings, TrainingData
from src.evaluation.results import read_result
from src.run.command_line import parse_args
from src.run.files import load_state
from src.run.settings import pick
from tests.toy import bc

SHORT = ("--steps", "40", "--eval_every", "20", "--eval_episodes", "3", "--curve_episodes", "1", "--lr_warmup_steps", "5")


def clone(root, *flags):
    done = shell("-m tests.toy.bc", *words(root, *SHORT, "--learning_rate", "1e-3", *flags))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_a_new_method_is_one_file(data_root, tmp_path):
    """Trained, measured, told by the report, without an edit anywhere else."""
    assert len((ROOT / "tests/toy/bc.py").read_text().splitlines()) <= 80
    shutil.copytree(data_root / "datasets", tmp_path / "datasets")
    said = clone(tmp_path)
    folder = tmp_path / RESULTS / "bc+debug"
    assert "next: python -m tools.report" in said and f"written to {folder / 'few_shot-strict/seed_0.json'}" in said
    few, zero = (read_result(folder / f"{regime}-strict/seed_0.json") for regime in ("few_shot", "zero_shot"))
    assert (few["method"], few["recipe"], few["ablation"], few["privileges"]) == ("bc", "debug", "none", "none")
    assert np.shape(few["returns"]) == np.shape(zero["returns"]) == (5, 3) and np.shape(few["warmup_returns"]) == (5, 3, 3)
    assert np.array(few["warmup_returns"])[:, :, 0].tolist() == zero["returns"]  # what does not adapt is the same policy
    assert few["curve"]["gradient_steps"] == [20, 40] and None not in few["curve"]["test_return"]
    assert few["curve"]["loss"][1] < few["curve"]["loss"][0]
    assert few["training"]["gradient_steps"] == 40 and few["training"]["parameters"] == 2 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2
    dataset = trajectories.load(tmp_path / "datasets", "point_robot", "random")
    assert few["made_from"] == {"dataset_sha256": dataset.metadata["sha256"]}
    assert load_state(tmp_path / SAVES / "bc+debug/seed_0/state.pt")["step"] == 40

    table = shell("-m tools.report", "--results", tmp_path / "results", "--table_only")
    assert table.returncode == 0 and "bc+debug" in table.stdout, table.stderr

    again = shell("-m tests.toy.bc", *words(tmp_path, *SHORT, "--learning_rate", "1e-3", "--eval_only", "--warmup_episodes", "1"))
    assert again.returncode == 0, again.stderr
    other = read_result(folder.with_name("bc+debug-warmup_episodes_1") / "few_shot-strict/seed_0.json")  # a row of its own
    assert np.shape(other["warmup_returns"]) == (5, 3, 1) and other["variant"] == {"warmup_episodes": 1}
    assert read_result(folder / "few_shot-strict/seed_0.json") == few
    fresh = shell("-m tests.toy.bc", *words(tmp_path, *SHORT, "--learning_rate", "1e-3", "--eval_only", "--fresh"))
    assert fresh.returncode == 0, fresh.stderr
    final = read_result(folder / "few_shot-strict-fresh/seed_0.json")  # beside the others, of the same policy
    assert final["task_ids"] == list(range(50, 100)) == sorted(map(int, final["task_parameters"])) and final["fresh"]
    assert read_result(folder / "few_shot-strict/seed_0.json")["task_ids"] == list(range(45, 50))
    assert final["curve"] == few["curve"]
    refused = shell("-m tests.toy.bc", *words(tmp_path, *SHORT, "--learning_rate", "1e-3", "--validation", "--fresh"))
    assert refused.returncode == 2 and "--fresh is for final figures, --validation for choosing" in refused.stderr
    refused = shell("-m tests.toy.bc", *words(tmp_path, *SHORT, "--learning_rate", "1e-2"))
    assert refused.returncode == 2 and "holds a run with learning_rate 0.001, this command says 0.01" in refused.stderr


@pytest.mark.parametrize("validation", [False, True])
def test_training_data_hold_the_training_tasks_alone(data_root, validation):
    flags = words(data_root, *(["--validation"] if validation else []))
    data = TrainingData(pick(RunSettings, parse_args(bc.make_parser(), "baselines.bc", flags)))
    held_out = list(range(30, 40))
    assert data.test_tasks == (held_out if validation else list(range(45, 50)))
    assert data.train_tasks == [task for task in range(45) if not (validation and task in held_out)]
    assert sorted(set(data.episodes.task_ids.tolist())) == data.train_tasks
    whole = trajectories.load(data_root / "datasets", "point_robot", "random")
    assert same_arrays(data.episodes, whole.select(data.train_tasks)) and same_arrays(data.dataset, whole)


def test_the_curve_is_of_training_tasks_and_of_test_tasks(monkeypatch):
    """Both after warm-up episodes, from the step on at which these make sense."""
    played, records = [], []

    def evaluate(agent, env, tasks, episodes, warmup, seed):
        played.append((tasks, episodes, warmup))
        return {"returns": [[float(tasks[0])]]}

    monkeypatch.setattr(method, "evaluate", evaluate)
    run, evaluation = types.SimpleNamespace(env=None, seed=0, validation=False), method.Evaluation(curve_episodes=2)
    data = types.SimpleNamespace(train_tasks=list(range(1, 9)), test_tasks=[10, 11])
    learner = types.SimpleNamespace(update=lambda step: {"loss": torch.tensor(0.5)}, agent=lambda warmup: None)
    loop = types.SimpleNamespace(
        steps=lambda: (1, 2), due=True, measuring=contextlib.nullcontext, record=lambda **values: records.append(values)
    )
    protocol = method.StrictProtocol(run, evaluation, data.test_tasks)
    method.train(loop, learner, run, evaluation, data, protocol, 3, prompted=lambda step: step > 1)
    assert played == [(tasks, 2, warmup) for warmup in (0, 3) for tasks in ([1, 2, 3, 4, 5], [10, 11])]
    assert records == [{"loss": 0.5, "train_return": 1.0, "test_return": 10.0}] * 2
