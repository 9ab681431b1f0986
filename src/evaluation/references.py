"""Reference levels of an environment family: read every return against them. tools/measure_references.py measures them."""

import functools

import numpy as np

from src.evaluation.agent import PolicyAgent, hook_actions
from src.evaluation.batch import make_batch
from src.evaluation.results import require_writable
from src.evaluation.rollout import returns, rollout
from src.run.config import CONFIG_DIR, is_published, num_known_tasks, num_tasks
from src.run.errors import UserError
from src.run.files import read_json
from src.run.seeding import derive
from src.run.stepping import blamed

EXPLICIT_CHOICE = "explicit_choice"  # the best of the best known policies of the other training tasks
PLAYED = ("trivial", "task_blind", "best_known")
LEVELS = (*PLAYED, "explicit_inference", EXPLICIT_CHOICE)


def reference_levels(env, environment, task_ids, dataset=None, episodes=5):
    """Returns of the trivial policy, of the best single policy (task-blind), of explicit inference where it needs no learning, of
    the best policy known of each task, and of the dataset where given.

    Args:
        env, environment: EnvConfig and the environment it makes. task_ids: list of ints. dataset: Trajectories or None.
    Returns: dict of lists, one number per task; a level that nobody can compute is None, explicit inference and explicit choice
    are left out then. Levels come from the environment's `reference_levels` and `reference_policies`, else from
    configs/references/<env_type>.json where these are of this environment; trivial is the zero action by default.
    explicit_choice is the best that a policy of another training task, told that task, earns.
    Raises UserError where the environment gives other levels or policies than these, or a return is beyond what results hold.
    """
    space = environment.action_space
    zeros = np.zeros(space.shape, np.float32)
    policies = {"trivial": lambda observations, ids: np.broadcast_to(zeros, (len(ids), *space.shape))}
    policies |= _given(env, environment, "reference_policies")
    levels = dict.fromkeys(PLAYED)
    stored = CONFIG_DIR / "references" / f"{env.env_type}.json"
    known = read_json(stored).get("per_task", {}) if stored.exists() and is_published(env) else {}
    sizes = (num_known_tasks(env, environment),), (num_tasks(environment),)  # those of the fresh tasks may be missing
    known |= _given_levels(env, environment, sizes)
    for name in LEVELS:
        if np.shape(known.get(name)) in sizes and max(task_ids) < len(known[name]):
            values = [known[name][task] for task in task_ids]
            levels |= {} if None in values else {name: [float(value) for value in values]}
    for name, policy in policies.items():
        episode = play(env, policy, np.repeat(np.asarray(task_ids), episodes), episodes)
        levels[name] = returns(episode).reshape(len(task_ids), episodes).mean(1).tolist()
    if dataset is not None:
        require_writable(f"returns of the dataset of {env.env_type}", dataset.returns)
        recorded = [dataset.returns[dataset.task_ids == task] for task in task_ids]
        if all(len(values) for values in recorded):
            levels["dataset_mean"] = [float(values.mean()) for values in recorded]
            levels["dataset_best"] = [float(values.max()) for values in recorded]
    for name, values in levels.items():
        require_writable(f"returns of the level {name} of {env.env_type}", values or [])
    return levels


def _given(env, environment, hook):
    """What a hook of the environment gives, {one of LEVELS: ...}; {} where it has none. Raises UserError."""
    if not hasattr(environment, hook):
        return {}
    with blamed(f"{env.entry_point}: {hook} fails"):
        given = dict(getattr(environment, hook)(environment.unwrapped.tasks, range(*env.train_tasks)))
    for name in given:
        if name not in LEVELS:
            raise UserError(f"{env.entry_point}: {hook} names {name!r}, which is no level: take {', '.join(LEVELS)}")
    return given


def _given_levels(env, environment, sizes):
    """reference_levels of the environment: {level: (N,) returns}, their shape one of sizes."""
    given, what = _given(env, environment, "reference_levels"), f"{env.entry_point}: reference_levels"
    for name, values in given.items():
        with blamed(f"{what} fails"):
            values = np.asarray(values)
        numbers = values.dtype.kind in "biuf" and values.shape in sizes and np.isfinite(values).all()
        if given[name] is not None and not numbers:
            raise UserError(f"{what} must give {name!r} a finite return for each of {sizes[-1][0]} tasks, or None")
    return given


def play(env, policy, rows, episodes=1, told=None):
    """The Episode of a reference policy: function (observations (B, d_s), task ids (B,)) -> actions (B, d_a).

    rows: (B,) tasks that are played, `episodes` of each in succession. told: (B,) tasks that the policy is told, if others.
    """
    seeds = [derive(0, "reference", int(task), row % episodes) % 2**31 for row, task in enumerate(rows)]
    batch = make_batch(env, rows)
    agent = PolicyAgent(functools.partial(_told, policy, batch.action_space, rows if told is None else told))
    return rollout(agent, batch, seeds, env.max_episode_steps)


def _told(policy, space, rows, observations):
    """Actions of a reference policy, which is told the tasks of the rows."""
    return hook_actions("a policy of reference_policies", space, policy, observations, rows)
