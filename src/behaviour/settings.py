"""Settings of stage 1: of the agents, and of the checkpoints that are kept of them."""

import argparse
import dataclasses

from src.run.flags import fraction, natural, nonnegative_float, positive_float, positive_fraction, positive_int
from src.run.settings import setting

PER_TASK = " per task (multitask_sac: over all tasks)"


def entropy(value):
    """'auto' or a number of at least 0."""
    try:
        return value if value == "auto" else nonnegative_float(value)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{value!r} is not auto or a number of at least 0") from None


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """agent (defaults: the paper's)"""

    algo: str = setting("sac", "see above", choices=["sac", "batched_sac", "multitask_sac", "scripted"])
    num_steps: int = setting(500_000, f"environment steps{PER_TASK}", positive_int)
    learning_starts: int = setting(2000, f"uniform random steps at first{PER_TASK}", natural)
    buffer_size: int = setting(10_000, f"transitions in the replay buffer{PER_TASK}", positive_int)
    batch_size: int = setting(256, "transitions per update", positive_int)
    updates_per_step: float = setting(1.0, "updates per environment step; sac: 1", positive_float)
    learning_rate: float = setting(3e-4, "of Adam, for actor and critics", positive_float)
    gamma: float = setting(0.99, "discount; an episode's end at the horizon bootstraps", fraction)
    tau: float = setting(0.005, "share of the critic that its target takes over per update", positive_fraction)
    entropy_coefficient: float | str = setting(0.2, "fixed weight of the entropy bonus, or auto: learn it", entropy)
    hidden_sizes: tuple = setting((128, 128), "widths of the ReLU layers", positive_int, nargs="+")

    def updates(self, former, step):
        """Gradient steps that are due between two numbers of environment steps."""
        return int(step * self.updates_per_step) - int(former * self.updates_per_step)


@dataclasses.dataclass(frozen=True)
class SharedSettings:
    """multitask_sac"""

    num_envs: int = setting(10, "tasks whose episodes are played side by side", positive_int)
    relabel_share: float = setting(0.5, "share of a batch moved to other tasks' rewards", fraction)
    end_at_falls: bool = setting(
        False, "end training episodes where the robot falls, which pays nothing any more, and begin anew"
    )
    decay_share: float = setting(0.0, "last part of training, in which the learning rate falls to 0", fraction)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """checkpoints"""

    save_freq: int = setting(
        10_000, "steps between two checkpoints; an interrupted run of sac may go on with others", positive_int
    )  # fmt: skip
    save_seconds: float = setting(
        60.0, "seconds between two saves of the training state, which a kill costs at most; each checkpoint saves it too",
        nonnegative_float,
    )  # fmt: skip
    eval_episodes: int = setting(10, "episodes that measure each checkpoint", positive_int)
