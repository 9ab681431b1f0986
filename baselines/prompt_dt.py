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
import functools
from pathlib import Path

import torch

from baselines.sequence import (
    Cloning,
    Returns,
    WindowAgent,
    Windowed,
    best_episode,
    blank_policy,
    cloning_loss,
    episode_tensors,
    make_policy,
    make_sampler,
    run_method,
    target_of,
    target_return,
)
from src.data import trajectories
from src.evaluation.method import TrainingData
from src.evaluation.shown import ShownProtocol, draw_of_tasks
from src.run.command_line import next_command
from src.run.errors import UserError, main_guard
from src.run.flags import positive_int, proper_fraction
from src.run.loop import Optimisation
from src.run.seeding import torch_generator
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class Prompts:
    """prompts"""

    prompt_length: int = setting(5, "k: steps of the prompt", positive_int)
    prompt_segment: str = setting("last", "which k steps of an episode", choices=["last", "random"])
    prompt_source: str = setting("self", "own episodes; expert: the expert data, of test tasks too", choices=["self", "expert"])
    prompt_dropout: float = setting(0.1, "share of batches without prompts (ours), for zero-shot", proper_fraction)


def build(data, run, model, returns, prompts, optimisation):
    """TrainingData, RunSettings, Windowed, Returns, Prompts, Optimisation -> Method."""
    policy = make_policy(data, run, model, returns.return_scale, prompted=True)
    sampler = make_sampler(data, run, model, prompts.prompt_length, prompts.prompt_segment)
    target = target_return(data.episodes)

    expert = load_expert(run, data.train_tasks).select(data.train_tasks) if prompts.prompt_source == "expert" else None
    if expert is not None:
        shown = episode_tensors(expert, run.device)
        tasks = torch.from_numpy(data.episodes.task_ids)

    def loss(generator):
        prompted = torch.rand(1, generator=generator).item() >= prompts.prompt_dropout
        history, prompt = sampler.draw(optimisation.batch_size, generator, prompted)
        if prompted and expert is not None:
            rows = draw_of_tasks(expert, tasks[history["episodes"].cpu()].numpy(), generator)
            prompt = cut(prompts, shown, torch.from_numpy(rows).to(run.device), generator)
        return cloning_loss(policy, history, prompt)

    make_prompt = functools.partial(own_prompt, prompts, run.seed, run.device)
    agent = functools.partial(WindowAgent, policy, model.history_length, target, make_prompt)
    return Cloning(policy, run.seed, optimisation, loss, agent, {"target": torch.tensor(target, dtype=torch.float64)})


def cut(prompts, episodes, rows, generator):
    """The prompt segments of the episodes `rows` (B,) of EpisodeTensors."""
    return episodes.prompts(rows, prompts.prompt_length, 1, prompts.prompt_segment, generator)


def own_prompt(prompts, seed, device, episodes):
    """Prompts from the best of the episodes that were lived."""
    best = best_episode(episodes, device)
    rows = torch.arange(len(best.lengths), device=device)
    return cut(prompts, best, rows, torch_generator(seed, "prompt", len(episodes)))


def restore(saved):
    """Saved -> (policy, function warmup -> Agent); prompts are its own, also where it learned by an expert's."""
    model, returns, prompts = saved.pick(Windowed, Returns, Prompts)
    policy = saved.filled(blank_policy(saved.sizes, saved.horizon, model, returns.return_scale, prompted=True))
    make_prompt = functools.partial(own_prompt, prompts, saved.seed, saved.device)
    return policy, lambda warmup: WindowAgent(policy, model.history_length, target_of(saved), make_prompt)


# -------------------------------------------------------------------------------------------- the original's expert prompts


def load_expert(run, tasks):
    """Expert data of `tasks`. Raises UserError where some are missing."""
    make = next_command(run, "get_datasets.py", "--data_type", "expert")
    expert = trajectories.load(Path(run.output_dir) / "datasets", run.env_type, "expert", run.env, make)
    missing = [task for task in tasks if task not in expert.tasks]
    if missing:
        raise UserError(f"the expert data lack task {missing[0]}; make it: {make}")
    return expert


def options(run, evaluation, model, returns, prompts, optimisation):
    """What --prompt_source expert changes in evaluation and results."""
    if prompts.prompt_source == "self":
        return {}
    data = TrainingData(run)
    expert = load_expert(run, data.test_tasks)
    return {
        "data": data,
        "protocol": ShownProtocol(run, evaluation, data.test_tasks, "expert_prompt", expert, 1),
        "regimes": {"few_shot": 0},
        "folder": "expert_prompt",
        "made_from": {"expert_sha256": expert.metadata["sha256"]},
    }


@main_guard
def main(argv=None):
    return run_method("prompt_dt", __doc__, build, (Windowed, Returns, Prompts, Optimisation), argv, options)


if __name__ == "__main__":
    main()
