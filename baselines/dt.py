"""Decision Transformer (Chen et al., 2021), one model for all training tasks, which is told nothing of the task.

    python -m baselines.dt --env_type point_robot --data_quality replay

Meta-DT without the context z and without a prompt, on the same windows. What lies beyond the running episode is never read:
zero-shot and few-shot are one thing, the lower bound of every method that adapts.

Left out of the original: its data script, which drops the last episode; other paddings in training (actions -10) than in acting
(0), which a mask makes harmless here; heads for states and returns, which no loss reaches; the target return of each task by hand
(here the mean over the training tasks of the best return in each one's data).
"""

import torch

from baselines.sequence import (
    Cloning,
    Returns,
    WindowAgent,
    Windowed,
    blank_policy,
    cloning_loss,
    make_policy,
    make_sampler,
    run_method,
    target_of,
    target_return,
)
from src.run.errors import main_guard
from src.run.loop import Optimisation


def build(data, run, model, returns, optimisation):
    """TrainingData, RunSettings, Windowed, Returns, Optimisation -> Method."""
    policy, sampler = make_policy(data, run, model, returns.return_scale), make_sampler(data, run, model)
    target = target_return(data.episodes)

    def loss(generator):
        history, _ = sampler.draw(optimisation.batch_size, generator, with_prompt=False)
        return cloning_loss(policy, history)

    return Cloning(
        policy,
        run.seed,
        optimisation,
        loss,
        lambda: WindowAgent(policy, model.history_length, target),
        {"target": torch.tensor(target, dtype=torch.float64)},
    )


def restore(saved):
    """Saved -> (policy, function warmup -> Agent)."""
    model, returns = saved.pick(Windowed, Returns)
    policy = saved.filled(blank_policy(saved.sizes, saved.horizon, model, returns.return_scale))
    return policy, lambda warmup: WindowAgent(policy, model.history_length, target_of(saved))


@main_guard
def main(argv=None):
    return run_method("dt", __doc__, build, (Windowed, Returns, Optimisation), argv)


if __name__ == "__main__":
    main()
