"""Whether what a former stage left, policies, data or a world model, belongs to the environment that is played now.

Only what was recorded is compared: former versions recorded less.
"""

import numpy as np

from src.run.config import num_tasks
from src.run.errors import UserError

FIXED_SEED = "; if that does not help, the environment draws other tasks in each process: give it a fixed seed"


def check_settings(made, env, what, mend):
    """Raises UserError, which ends in `mend`, where the environment was another one, or had other options or another horizon.

    made: {"entry_point", "options", "max_episode_steps"} as recorded; options are a dict or pairs, left out where there are none.
    env: EnvConfig. what: subject and verb, such as "the dataset was made".
    """
    if made.get("entry_point", env.entry_point) != env.entry_point:
        raise UserError(f"{what} in {made['entry_point']}, not in {env.entry_point}: {mend}")
    ours = dict(env.options)
    theirs = dict(made.get("options", {} if "entry_point" in made else ours))
    changed = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if changed:
        raise UserError(f"{what} with other options ({', '.join(changed)}): {mend}")
    steps = made.get("max_episode_steps", env.max_episode_steps)
    if steps != env.max_episode_steps:
        raise UserError(f"{what} with max_episode_steps {steps}, {env.env_type} has {env.max_episode_steps}: {mend}")


def check_tasks(told, env, environment, what, mend):
    """Raises UserError, which ends in `mend`, where tasks are not those of the environment, which the EnvConfig `env` made.

    told: {task id: {parameter: number or list}} as recorded. what: whose tasks they are, such as "the dataset".
    """
    tasks, count = environment.unwrapped.tasks, num_tasks(environment)
    for task, parameters in told.items():
        if not 0 <= task < count:
            raise UserError(f"task id {task} of {what} is unknown: {env.env_type} has tasks 0 to {count - 1}: {mend}")
        if parameters.keys() != tasks.keys():
            theirs, ours = (", ".join(sorted(names)) or "nothing" for names in (parameters, tasks))
            raise UserError(f"task {task} of {what} is told by {theirs}, that of {env.env_type} by {ours}: {mend}")
        for key, theirs in parameters.items():
            ours = tasks[key][task]
            if np.shape(theirs) != np.shape(ours) or not np.allclose(theirs, ours, atol=1e-5):
                raise UserError(
                    f"task {task} of {what} has {key} {theirs}, that of {env.env_type} {ours.tolist()}: {mend}{FIXED_SEED}"
                )
