"""Prompt-DT (Xu et al., 2022): a decision transformer behind a short segment of another episode of the same task.

    python -m baselines.prompt_dt --env_type point_robot --data_quality replay
    python -m baselines.prompt_dt --env_type point_robot --data_quality replay --prompt_source expert

Meta-DT without the context z, its prompt cut where the original cuts it: the last k steps. In training the prompt comes from
another episode of the task's data; few-shot, from the best of the agent's own warm-up episodes; zero-shot there is none, which
a tenth of the batches practises. --prompt_source expert is the original: prompts, in training and at test, from episodes of
the expert data of the same task. That is a demonstration on the test task, so its rows stand apart.

Left out of the original: statistics over training and test tasks together (here the training tasks); guessing from lengths
whether a prompt is one (here an argument); a fixed share of every task in each batch (here windows of all tasks alike, as in the
other methods); switches that cannot be turned off; fine-tuning on the test task.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from src.evaluation.method import Evaluation, RunSettings, StrictProtocol, TrainingData, method_parser, train_and_measure
from src.run.settings import pick, setting

from baselines.sequence import (
    Cloning,
    Sequence,
    WindowAgent,
    best_episode,
    cloning_loss,
    episode_tensors,
    make_policy,
    make_sampler,
    target_return,
)
from src.data import trajectories
from src.run.config import fraction, next_command, parse_args, positive_int, settings
from src.run.devices import keep_memory
from src.run.errors import UserError, main_guard
from src.run.loop import Optimisation
from src.run.seeding import torch_generator


@dataclasses.dataclass(frozen=True)
class Prompts:
    """prompts"""

    prompt_length: int = setting(5, "k: steps of the prompt", positive_int)
    prompt_segment: str = setting("last", "which k steps of an episode", choices=["last", "random"])
    prompt_source: str = setting("self", "own episodes; expert: the expert data, of test tasks too", choices=["self", "expert"])
    prompt_dropout: float = setting(0.1, "share of batches without prompts (ours), for zero-shot", fraction)


def build(data, run, model, prompts, optimisation, expert=None):
    """TrainingData, RunSettings, Sequence, Prompts, Optimisation, and the expert's Trajectories or None -> Method."""
    policy = make_policy(data, run, model, prompted=True)
    sampler = make_sampler(data, run, model, prompts.prompt_length, prompts.prompt_segment)
    target = target_return(data.episodes)

    def cut(episodes, rows, generator):
        return episodes.prompts(rows, prompts.prompt_length, 1, prompts.prompt_segment, generator)

    if expert is not None:
        shown = episode_tensors(expert, run.device)
        tasks = torch.from_numpy(data.episodes.task_ids)

    def loss(generator):
        prompted = torch.rand(1, generator=generator).item() >= prompts.prompt_dropout
        history, prompt = sampler.draw(optimisation.batch_size, generator, prompted)
        if prompted and expert is not None:
            rows = draw_of_tasks(expert, tasks[history["episodes"].cpu()].numpy(), generator)
            prompt = cut(shown, torch.from_numpy(rows).to(run.device), generator)
        return cloning_loss(policy, history, prompt)

    def make_prompt(episodes):
        best = best_episode(episodes, run.device)
        rows = torch.arange(len(best.lengths), device=run.device)
        return cut(best, rows, torch_generator(run.seed, "prompt", len(episodes)))

    return Cloning(policy, run.seed, optimisation, loss, lambda: WindowAgent(policy, model.history_length, target, make_prompt))


# -------------------------------------------------------------------------------------------- the original's expert prompts


def draw_of_tasks(expert, tasks, generator):
    """A uniformly drawn episode of each of `tasks` (B,): rows (B,) of the expert's Trajectories."""
    share = torch.rand(len(tasks), generator=generator).numpy()
    rows = [np.flatnonzero(expert.task_ids == task) for task in tasks]
    return np.array([found[int(part * len(found))] for found, part in zip(rows, share, strict=True)])


class ExpertPrompts(StrictProtocol):
    """The original's evaluation: every episode's prompt is from an expert's episode on the test task itself."""

    name = "expert_prompt"

    def __init__(self, run, evaluation, test_tasks, expert):
        super().__init__(run, evaluation, test_tasks)
        self.expert = expert

    def curve(self, agent, warmup):
        return super().curve(self._shown(agent, self.evaluation.curve_episodes), 0)

    def final(self, agent, warmup, keep=0, watch=None):
        return super().final(self._shown(agent, self.evaluation.eval_episodes), 0, keep, watch)

    def _shown(self, agent, episodes):
        tasks = np.repeat(self.test_tasks, episodes)
        chosen = self.expert.take(draw_of_tasks(self.expert, tasks, torch_generator(self.run.seed, "shown")))
        names = ("observations", "actions", "rewards", "lengths")
        agent.shown = [{name: getattr(chosen, name) for name in names}]
        return agent


def load_expert(run, data):
    """Expert data of all tasks that are trained on or tested. Raises UserError."""
    make = next_command(run, "get_datasets.py", "--data_type", "expert")
    expert = trajectories.load(Path(run.output_dir) / "datasets", run.env_type, "expert", run.env, make)
    missing = [task for task in (*data.train_tasks, *data.test_tasks) if task not in expert.tasks]
    if missing:
        raise UserError(f"the expert data lack task {missing[0]}; make it: {make}")
    return expert


@main_guard
def main(argv=None):
    args = parse_args(method_parser(__doc__, Sequence, Prompts, Optimisation), "baselines.prompt_dt", argv)
    classes = (RunSettings, Evaluation, Sequence, Prompts, Optimisation)
    run, evaluation, model, prompts, optimisation = (pick(cls, args) for cls in classes)
    keep_memory()
    data, options, expert = TrainingData(run), {}, None
    if prompts.prompt_source == "expert":
        expert = load_expert(run, data)
        options["protocol"] = ExpertPrompts(run, evaluation, data.test_tasks, expert)
        options |= {
            "regimes": {"few_shot": 0},
            "folder": "expert_prompt",
            "made_from": {"expert_sha256": expert.metadata["sha256"]},
        }
    return train_and_measure(
        "prompt_dt", run, evaluation, settings(args), optimisation.steps,
        lambda data: build(data, run, model, prompts, optimisation, expert), data=data, **options,
    )  # fmt: skip


if __name__ == "__main__":
    main()
