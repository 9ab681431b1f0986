"""Reference levels of an environment family: read every return against them. tools/measure_references.py measures them."""

import functools

import numpy as np

from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.rollout import returns, rollout
from src.run.config import CONFIG_DIR, is_published, num_known_tasks, num_tasks
from src.run.environment import blamed
from src.run.files import read_json
from src.run.seeding import derive

EXPLICIT_CHOICE = "explicit_choice"  # the best of the best known policies of the other training tasks


def reference_levels(env, environment, task_ids, dataset=None, episodes=5):
    """Returns of the trivial policy, of the best single policy (task-blind), of explicit inference where it needs no learning, of
    the best policy known of each task, and of the dataset where given.

    Args:
        env, environment: EnvConfig and the environment it makes. task_ids: list of ints. dataset: Trajectories or None.
    Returns: dict of lists, one number per task; a level that nobody can compute is None, explicit inference and explicit choice
    are left out then. Levels come from the environment's `reference_levels` and `reference_policies`, else from
    configs/references/<env_type>.json where these are of this environment; trivial is the zero action by default.
    explicit_choice is the best that a policy of another training task, told that task, earns.
    """
    space = environment.action_space
    zeros = np.zeros(space.shape, np.float32)
    policies = {"trivial": lambda observations, ids: np.broadcast_to(zeros, (len(ids), *space.shape))}
    make_policies = getattr(environment, "reference_policies", None)
    if make_policies:
        with blamed(f"{env.entry_point}: reference_policies fails"):
            policies |= make_policies(environment.unwrapped.tasks, range(*env.train_tasks))
    levels = {"trivial": None, "task_blind": None, "best_known": None}
    stored = CONFIG_DIR / "references" / f"{env.env_type}.json"
    known = read_json(stored).get("per_task", {}) if stored.exists() and is_published(env) else {}
    if hasattr(environment, "reference_levels"):
        with blamed(f"{env.entry_point}: reference_levels fails"):
            known |= environment.reference_levels(environment.unwrapped.tasks, range(*env.train_tasks))
    sizes = (num_known_tasks(env, environment),), (num_tasks(environment),)  # those of the fresh tasks may be missing
    for name in (*levels, "explicit_inference", EXPLICIT_CHOICE):
        if np.shape(known.get(name)) in sizes and max(task_ids) < len(known[name]):
            values = [known[name][task] for task in task_ids]
            levels |= {} if None in values else {name: [float(value) for value in values]}
    for name, policy in policies.items():
        episode = play(env, policy, np.repeat(np.asarray(task_ids), episodes), episodes)
        levels[name] = returns(episode).reshape(len(task_ids), episodes).mean(1).tolist()
    if dataset is not None:
        recorded = [dataset.returns[dataset.task_ids == task] for task in task_ids]
        if all(len(values) for values in recorded):
            levels["dataset_mean"] = [float(values.mean()) for values in recorded]
            levels["dataset_best"] = [float(values.max()) for values in recorded]
    return levels


def play(env, policy, rows, episodes=1, told=None):
    """The Episode of a reference policy: function (observations (B, d_s), task ids (B,)) -> actions (B, d_a).

    rows: (B,) tasks that are played, `episodes` of each in succession. told: (B,) tasks that the policy is told, if others.
    """
    seeds = [derive(0, "reference", int(task), row % episodes) % 2**31 for row, task in enumerate(rows)]
    agent = PolicyAgent(functools.partial(_told, policy, rows if told is None else told))
    return rollout(agent, make_batch(env, rows), seeds, env.max_episode_steps)


def _told(policy, rows, observations):
    """Actions of a reference policy, which is told the tasks of the rows."""
    with blamed("a policy of reference_policies fails"):
        return policy(observations, rows)
