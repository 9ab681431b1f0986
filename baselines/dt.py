"""Decision Transformer (Chen et al., 2021), one model for all training tasks, which is told nothing of the task.

    python -m baselines.dt --env_type point_robot --data_quality replay

Meta-DT without the context z and without a prompt, on the same windows. What lies beyond the running episode is never read:
zero-shot and few-shot are one thing, the lower bound of every method that adapts.

Left out of the original: its data script, which drops the last episode; other paddings in training (actions -10) than in acting
(0), which a mask makes harmless here; heads for states and returns, which no loss reaches; the target return of each task by hand
(here the mean over the training tasks of the best return in each one's data).
"""

from src.evaluation.method import Evaluation, RunSettings, method_parser, train_and_measure
from src.run.settings import pick

from baselines.sequence import (
    Cloning,
    Sequence,
    WindowAgent,
    cloning_loss,
    make_policy,
    make_sampler,
    target_return,
)
from src.run.config import parse_args, settings
from src.run.devices import keep_memory
from src.run.errors import main_guard
from src.run.loop import Optimisation


def build(data, run, model, optimisation):
    """TrainingData, RunSettings, Sequence, Optimisation -> Method."""
    policy, sampler = make_policy(data, run, model), make_sampler(data, run, model)
    target = target_return(data.episodes)

    def loss(generator):
        history, _ = sampler.draw(optimisation.batch_size, generator, with_prompt=False)
        return cloning_loss(policy, history)

    return Cloning(policy, run.seed, optimisation, loss, lambda: WindowAgent(policy, model.history_length, target))


@main_guard
def main(argv=None):
    args = parse_args(method_parser(__doc__, Sequence, Optimisation), "baselines.dt", argv)
    run, evaluation, model, optimisation = (pick(cls, args) for cls in (RunSettings, Evaluation, Sequence, Optimisation))
    keep_memory()
    return train_and_measure(
        "dt", run, evaluation, settings(args), optimisation.steps, lambda data: build(data, run, model, optimisation)
    )


if __name__ == "__main__":
    main()
