"""Meta-DT in training: what it takes from the data of the training tasks."""

import numpy as np
import pytest
import torch
from helpers import parsed, tiny_world_model, words

from src.evaluation.exploration import Exploration
from src.evaluation.method import RunSettings, TrainingData
from src.models.meta_dt import ModelSettings
from src.models.meta_dt_agent import Adaptation
from src.models.meta_dt_training import Imitation, MetaDTTraining, Prompting
from src.models.world_model import episode_contexts
from src.run.loop import Optimisation
from src.run.settings import pick


def training(root, prompts=True, steps=10, start=0, **adaptation):
    """MetaDTTraining on the dataset of `root`, with a tiny policy and an untrained world model."""
    run = pick(RunSettings, parsed("train_meta_dt", *words(root)[2:]))
    data, model = TrainingData(run), ModelSettings(width=16, layers=1, dropout=0.0, history_length=6, prompt_length=4)
    return data, MetaDTTraining(
        run, data, tiny_world_model(), model=model, optimisation=Optimisation(steps, batch_size=8, lr_warmup_steps=0),
        imitation=Imitation(), prompting=Prompting(start), adaptation=Adaptation(**adaptation),
        exploration=Exploration(), prompts=prompts, precision="float32",
    )  # fmt: skip


def test_contexts_to_try_are_those_of_the_training_tasks_the_best_paid_first(data_root):
    data, method = training(data_root, context="tried")
    known, episodes = method.known_contexts(), data.episodes
    means = {task: episodes.returns[episodes.task_ids == task].mean() for task in data.train_tasks}
    order = sorted(means, key=means.get, reverse=True)
    assert known.shape == (45, 16) and order != sorted(order)
    for place in (0, 1, 22, 44):
        rows = episodes.task_ids == order[place]
        arrays = (torch.from_numpy(getattr(episodes, name)[rows]) for name in ("observations", "actions", "rewards"))
        last = episode_contexts(method.world_model, *arrays)[:, -1]
        torch.testing.assert_close(known[place], last.mean(0), atol=1e-5, rtol=0)
    agent = method.agent(3)
    assert torch.equal(agent.known_contexts, known)


def test_the_target_is_the_mean_best_return_of_the_training_tasks(data_root):
    data, method = training(data_root)
    best = [data.episodes.returns[data.episodes.task_ids == task].max() for task in range(45)]
    assert method.target == pytest.approx(np.mean(best)) and method.agent(0).target == method.target
    assert training(data_root, target_return=-7.5)[1].target == -7.5


@pytest.mark.parametrize(
    ("settings", "prompted"),
    [({"prompts": True, "start": 2}, [0, 0, 1, 1]), ({"prompts": False}, [0] * 4)],
)
def test_prompts_are_switched_on_after_their_step(data_root, monkeypatch, settings, prompted):
    _, method = training(data_root, **settings)
    seen, forward = [], method.policy.forward

    def noted(history, prompt=None):
        seen.append(prompt is not None)
        return forward(history, prompt)

    monkeypatch.setattr(method.policy, "forward", noted)
    losses = [float(method.update(step)["loss"]) for step in range(1, 5)]
    assert seen == [bool(flag) for flag in prompted] and np.isfinite(losses).all()
