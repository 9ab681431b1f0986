"""Rewards learned from each task's own: by hand, on real data, from disk, and what must not be relabelled."""

import dataclasses
import shutil
import types

import numpy as np
import pytest
import torch
from helpers import SAVES, assert_refused, point_robot, run_stage, words

import train_context
import train_meta_dt
from src.data import trajectories
from src.data.relabel import EnvironmentRewards, with_best_of_other_tasks
from src.models import reward_model
from src.models.reward_model import (
    LearnedRewards,
    RewardModel,
    compare,
    held_out_episodes,
    held_out_errors,
    train_reward_model,
    transition_inputs,
)
from src.report.results import read_results
from src.run.errors import UserError
from src.run.files import digest, load_state, save_state

FILE = SAVES / "reward_model" / "seed_0" / "reward_model.pt"
RELABELLED = ["--decode", "relabelled"]
OURS = "meta_dt+debug-other_tasks_training"


@pytest.fixture(scope="module")
def episodes(data_root):
    return trajectories.load(data_root / "datasets", "point_robot", "random").select(range(45))


@pytest.fixture(scope="module")
def trained(episodes):
    return train_reward_model(episodes, [], 0)


def test_errors_of_the_own_task_and_of_another_one(episodes):
    """Of a model that gives a task's number, where that is what is paid."""
    numbers = torch.nn.Embedding.from_pretrained(torch.tensor([[0.0], [1.0]]))
    model = types.SimpleNamespace(embedding=numbers, rewards=lambda inputs, embeddings: embeddings[:, 0])
    some, rows = episodes.take(range(40)), np.arange(40) % 2
    paid = dataclasses.replace(some, rewards=some.rewards * 0 + rows[:, None].astype(np.float32))
    assert held_out_errors(model, paid, rows, [], 0) == {"held_out_r2": 1.0, "wrong_task_r2": -3.0}


def learned(model, task_ids):
    return LearnedRewards(model, task_ids, [], {}, {})


def by_hand():
    """A model whose reward is s' + 10 w_0 for observations and actions of size 1, by tasks 3, 5, 8 with w_0 = 0, 1, 2."""
    model = RewardModel(3, 3)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.embedding.weight.data[:, 0] = torch.tensor([0.0, 1.0, 2.0])
    model.body = torch.nn.Linear(reward_model.WIDTH, 1)
    model.body.weight.data.zero_()
    model.body.bias.data.zero_()
    model.body.weight.data[0, 0] = model.transition.weight.data[0, 0] = 1.0  # input 0 is s'
    model.task.weight.data[0, 0] = 10.0
    return model.requires_grad_(False)


def line(starts=(0, 1, 2, 3), lengths=(3, 3, 3, 2), tasks=(3, 3, 5, 8)):
    """Episodes that walk from `starts` by 1 each step; task i's reward is s' + 10 i, as `by_hand` says."""
    observations = (np.array(starts, np.float32)[:, None] + np.arange(4))[..., None].astype(np.float32)
    place = np.array([{3: 0, 5: 1, 8: 2}[task] for task in tasks])
    rewards = (observations[:, 1:, 0] + 10 * place[:, None]) * (np.arange(3) < np.array(lengths)[:, None])
    return trajectories.Trajectories(
        observations, np.ones((len(starts), 3, 1), np.float32), rewards.astype(np.float32), np.array(lengths), np.array(tasks)
    )


def test_rewards_by_hand():
    rewards, walk = learned(by_hand(), [3, 5, 8]), line()
    found = rewards(
        walk.observations[:, :-1], walk.actions, walk.observations[:, 1:], {}, np.broadcast_to([[3], [5], [8], [5]], (4, 3))
    )
    assert found.tolist() == [[1, 2, 3], [12, 13, 14], [23, 24, 25], [14, 15, 16]] and found.dtype == np.float32
    assert rewards.on(walk)(8).tolist() == [[21, 22, 23], [22, 23, 24], [23, 24, 25], [24, 25, 0]]  # nothing beyond an end
    model = by_hand()
    model.set_normaliser(
        torch.tensor([[0.0, 1, 1], [4, 1, 1]]), torch.tensor([1.0, 5.0])
    )  # s' and reward: deviation 2, around 2 and 3
    inputs = transition_inputs(*(np.full((1, 1), value, np.float32) for value in (3, 1, 4)), {}, [])
    assert model.rewards(inputs, model.embedding.weight[[1]]).item() == pytest.approx((1 + 10) * 2 + 3, rel=1e-5)


def test_the_best_episodes_by_learned_rewards_join():
    joined = with_best_of_other_tasks(line(), learned(by_hand(), [3, 5, 8]), 0.5)
    added = joined.take(np.arange(4, 7))  # half of 2, 1 and 1 episodes, upwards
    assert added.task_ids.tolist() == [3, 5, 8] and added.observations[:, 0, 0].tolist() == [2, 1, 2]
    assert added.rewards.tolist() == [[3, 4, 5], [12, 13, 14], [23, 24, 25]]


def test_recorded_facts_are_read_where_the_environment_names_them():
    arrays = [np.zeros((2, 3, size), np.float32) for size in (4, 2, 4)]
    infos = {"heat": np.full((2, 3), 7.0), "force": np.ones((2, 3, 5)), "reward_of_the_task": np.zeros((2, 3))}
    inputs = transition_inputs(*arrays, infos, ["heat", "force"])
    assert inputs.shape == (6, 16) and inputs.dtype == torch.float32 and inputs[:, 10].tolist() == [7] * 6
    none = (array[:0, 0] for array in arrays)  # a batch of which no episode is moved to another task
    assert transition_inputs(*none, {key: values[:0, 0] for key, values in infos.items()}, ["heat", "force"]).shape == (0, 16)


def test_compared_with_true_rewards_by_hand(monkeypatch):
    """Of three tasks with two episodes each, the truth is what `by_hand` says; the model that is compared knows nothing."""
    walk = line((0, 1, 2, 3, 4, 5), (3,) * 6, (3, 3, 5, 5, 8, 8))
    true, blind = learned(by_hand(), [3, 5, 8]), by_hand()
    monkeypatch.setattr(reward_model, "PICKED", 0.5)
    same = compare(true, true, walk, 0)
    # the best of the own are those from 1, 3, 5, in three steps 9, 15 and 21 and what the task pays: 30 a step's worth each
    assert same == {"other_tasks_r2": 1.0, "best_own": 15 + 30, "best_learned": 21 + 30, "best_true": 21 + 30, "gain_share": 1.0}
    blind.transition.weight.data.zero_()
    blind.body.bias.data[:] = -100
    found = compare(learned(blind, [3, 5, 8]), true, walk, 0)
    assert found["best_learned"] == found["best_own"] == 45 and found["gain_share"] == 0 and found["other_tasks_r2"] < 0
    assert compare(true, true, walk.select([3]), 0)["gain_share"] is None


def test_a_tenth_of_each_tasks_episodes_is_held_out():
    rows = np.repeat([0, 1, 2, 3], [1, 2, 10, 25])
    mask = held_out_episodes(rows, 0)
    assert np.bincount(rows[mask], minlength=4).tolist() == [0, 1, 1, 3]
    assert not np.array_equal(mask, held_out_episodes(rows, 1))


def test_it_rewards_transitions_of_other_tasks(episodes, trained):
    model, errors = trained
    assert errors["held_out_r2"] > 0.9 and errors["wrong_task_r2"] < 0.5
    true = EnvironmentRewards(point_robot().make(), episodes)
    found = compare(learned(model.requires_grad_(False), range(45)), true, episodes, 0)
    assert found["other_tasks_r2"] > 0.8 and found["gain_share"] > 0.8


def test_its_bits_depend_on_the_data_and_the_seed_alone(episodes, trained):
    few = episodes.select(range(5))
    first, errors = train_reward_model(few, [], 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(99)
    again, same = train_reward_model(few, [], 3)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert digest(first.state_dict()) == digest(again.state_dict()) != digest(train_reward_model(few, [], 4)[0].state_dict())
    assert errors == same


def test_tasks_of_one_reward_are_refused_and_a_poor_model_is_named(capsys):
    reward_model.check({"held_out_r2": 0.9, "wrong_task_r2": 0.5}, 45)
    shown = capsys.readouterr()
    assert "R² 0.9 on held-out episodes of their tasks (0.5 for another task's)" in shown.out and not shown.err
    for poor in (0.3, None):
        reward_model.check({"held_out_r2": poor, "wrong_task_r2": 0.3}, 45)
        assert "warning: relabelled rewards may mislead (R² is not above 0.8)" in capsys.readouterr().err
    reward_model.check({"held_out_r2": 0.9, "wrong_task_r2": 0.5}, 2)
    assert "may mislead (2 training tasks may be too few" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"pay alike .*dynamics.*another --decode.*--other_tasks none"):
        reward_model.check({"held_out_r2": 0.99, "wrong_task_r2": 0.985}, 45)


# -------------------------------------------------------------------------------------------------------------- the file


@pytest.fixture
def root(data_root, tmp_path):
    """An output folder with data and nothing else."""
    shutil.copytree(data_root / "datasets", tmp_path / "datasets")
    return tmp_path


@pytest.mark.long
def test_one_model_for_all_scripts_and_no_privilege(root, capsys):
    run_stage("train_context", root, *RELABELLED)
    file = (root / FILE).read_bytes()
    run_stage("train_meta_dt", root, "--other_tasks", "training")
    assert (root / FILE).read_bytes() == file
    (root / FILE).unlink()
    run_stage("train_meta_dt", root, "--other_tasks", "training", "--no-resume")  # made again: the same bits
    assert (root / FILE).read_bytes() == file
    run_stage("train_meta_dt", root, "--other_tasks", "training", "--true_rewards")
    found = {(r["label"], r["regime"]): r for r in read_results(root / "results")[0]}
    assert found[OURS, "few_shot"]["privileges"] == found["context+debug", "diagnostics"]["privileges"] == "none"
    assert found["meta_dt+debug-true_rewards+other_tasks_training", "few_shot"]["privileges"] == "reward function"
    hashes = {r["made_from"].get("reward_model_sha256") for r in found.values() if "true_rewards" not in r["label"]}
    assert len(hashes) == 1 and None not in hashes
    error = found["context+debug", "diagnostics"]["learned_reward"]["held_out_r2"]
    assert found[OURS, "few_shot"]["learned_reward"]["held_out_r2"] == error
    assert capsys.readouterr().out.count(f"learned rewards: R² {error:.4g} on held-out episodes") == 3
    run_stage("train_context", root, *RELABELLED, "--true_rewards")
    model = str(root / SAVES / "context+debug-true_rewards/seed_0")
    run_stage("train_meta_dt", root, "--other_tasks", "training", "--world_model", model)  # told by the world model
    found = {(r["label"], r["regime"]): r["privileges"] for r in read_results(root / "results")[0]}
    told = found["context+debug-true_rewards", "diagnostics"]
    policies = {name: value for (name, regime), value in found.items() if name.endswith("context_true_rewards")}
    assert told == "reward function" and set(policies.values()) == {"reward function"}


def test_killed_before_the_model_has_its_name(root, data_root, monkeypatch):
    """The same command goes on to the same weights."""
    whole = shutil.copytree(root, root / "whole")
    run_stage("train_context", whole, *RELABELLED)

    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(reward_model, "save_state", killed)
    with pytest.raises(SystemExit):
        run_stage("train_context", root, *RELABELLED)
    monkeypatch.undo()
    assert not (root / FILE).exists()
    run_stage("train_context", root, *RELABELLED)
    for file in (FILE, SAVES / "context+debug/seed_0/best.safetensors"):
        assert (root / file).read_bytes() == (whole / file).read_bytes()


def test_nothing_of_a_test_task_is_read(root):
    run_stage("train_context", root, *RELABELLED)
    first = load_state(root / FILE)
    dataset = trajectories.load(root / "datasets", "point_robot", "random")
    test = dataset.task_ids >= 45
    changed = dataclasses.replace(
        dataset, metadata={}, rewards=np.where(test[:, None], np.float32(-7), dataset.rewards),
        observations=np.where(test[:, None, None], dataset.observations * 3 + 1, dataset.observations),
    )  # fmt: skip
    trajectories.save(changed, root / "datasets", point_robot(), "random", {"seed": 0})
    run_stage("train_context", root, *RELABELLED, "--no-resume")
    second = load_state(root / FILE)
    assert first["dataset_sha256"] != second["dataset_sha256"] and first["errors"] == second["errors"]
    assert digest(first["model"]) == digest(second["model"])


def test_a_model_of_other_data_is_refused(root, capsys):
    run_stage("train_context", root, *RELABELLED)
    state = load_state(root / FILE)
    other = ("--other_tasks", "training")
    for key, value in (("dataset_sha256", "0" * 64), ("task_ids", [1, 2]), ("seed", 7), ("info_keys", ["heat"])):
        save_state(root / FILE, state | {key: value})
        assert_refused(capsys, train_meta_dt, words(root, *other), f"was learned from another {key}: delete it")
    assert_refused(capsys, train_context, words(root, *RELABELLED), "was learned from another info_keys: delete it")
    (root / FILE).write_bytes(b"nothing of the kind")
    assert_refused(capsys, train_meta_dt, words(root, *other), "is damaged")
    assert not list((root / SAVES).glob("meta_dt*"))
