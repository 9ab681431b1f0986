"""Many episodes stepped as one array: by an environment's own `batch_class` where it has one, else in a loop."""

import numpy as np

from src.run.environment import is_ours
from src.run.stepping import EnvironmentLoop, OwnBatch, batch_class


def make_batch(env, task_ids):
    """Rows of episodes, one task per row; row i of every array belongs to task_ids[i]. A `Batch` of envs/base.py.

    Args:
        env: EnvConfig.
        task_ids: (B,) integers.
    A wrapped environment is stepped in a loop, wrapper and all: its inner `batch_class` knows nothing of the wrapper.
    `action_space` is that of one row. Raises UserError, at the step that breaks the contract; our own families, which tests hold
    to it, are not looked at.
    """
    task_ids = np.asarray(task_ids)
    environment = env.make(discrete=True)  # who acts has asked for actions that it can give
    own = batch_class(environment)
    if own is None:
        batch = EnvironmentLoop(env, task_ids)
    elif is_ours(environment):
        batch = own({key: values[task_ids] for key, values in environment.tasks.items()})
    else:
        batch = OwnBatch(env, environment, task_ids)
    batch.action_space = environment.action_space
    return batch
