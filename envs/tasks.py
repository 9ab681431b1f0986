"""Task lists are data: one JSON file per environment in `configs/tasks/`, written once from the published seeds.

`{"env_type": "point_robot", "source": "...", "tasks": [{"goal": [x, y]}, ...]}`: entry i is task id i, its keys are the
task parameters. Run `python -m envs.tasks` to regenerate the files that a written rule determines, and `python -m
envs.meta_world` those of Meta-World.

Tasks 50 to 99 of a family are fresh: drawn by the same rule from another seed (FRESH_SEED) and kept for final figures, so that no
setting was ever chosen by them. Families whose tasks are all there are (Cheetah-Dir: two directions) have none, and the lists of
Meta-World, BOReL and IDAQ are those of others.
"""

import json
from functools import lru_cache

import numpy as np

from envs.settings import CONFIG_DIR

TASK_DIR = CONFIG_DIR / "tasks"
FRESH_SEED = 20_260_101


@lru_cache
def load_tasks(env_type):
    """Task parameters of one environment family: dict of float64 arrays, each (num_tasks, ...)."""
    tasks = json.loads((TASK_DIR / f"{env_type}.json").read_text(encoding="utf-8"))["tasks"]
    return {key: np.array([task[key] for task in tasks], dtype=np.float64) for key in tasks[0]}


def point_robot_tasks():
    """50 goals, uniform in the square [-1, 1]²: the list of the Meta-DT lab (numpy's legacy generator, seed 123456); 50 fresh
    ones by the seed 20260101."""
    goals = [np.random.RandomState(seed).uniform(-1, 1, (50, 2)) for seed in (123456, FRESH_SEED)]
    return [{"goal": goal.tolist()} for goal in np.concatenate(goals)]


def cheetah_vel_tasks():
    """50 speeds in m/s, uniform in [0, 3]: the list of the Meta-DT lab (numpy's legacy generator, seed 123456); 50 fresh ones by
    the seed 20260101."""
    velocities = [np.random.RandomState(seed).uniform(0, 3, 50) for seed in (123456, FRESH_SEED)]
    return [{"velocity": velocity} for velocity in np.concatenate(velocities).tolist()]


def cheetah_dir_tasks():
    """Directions +1, -1, +1, -1: the test tasks are the training tasks, as in the code of Meta-DT; there are no others."""
    return [{"direction": direction} for direction in (1.0, -1.0, 1.0, -1.0)]


def ant_dir_tasks():
    """50 angles, uniform in [0, 2 pi]: the list of the Meta-DT lab (legacy seed 123456, after two discarded draws); 50 fresh ones
    by the seed 20260101."""
    generator = np.random.RandomState(123456)
    generator.uniform(size=2)  # the lab's environment draws two default tasks before the list
    angles = [drawn.uniform(0, 2 * np.pi, 50) for drawn in (generator, np.random.RandomState(FRESH_SEED))]
    return [{"angle": angle} for angle in np.concatenate(angles).tolist()]


def rand_params_tasks(bodies, dofs):
    """Twice 50 sets of exponents, uniform in [-3, 3]. Every body has one geom; body 0 is the world and geom 0 the floor."""
    generators = [np.random.RandomState(seed) for seed in (1234, FRESH_SEED)]
    shapes = {"mass": (bodies,), "inertia": (bodies, 3), "damping": (dofs,), "friction": (bodies, 3)}
    tasks = [
        {key: generator.uniform(-3, 3, shape).tolist() for key, shape in shapes.items()}
        for generator in generators
        for _ in range(50)
    ]
    return [{f"{key}_exponent": values for key, values in task.items()} for task in tasks]


def hopper_rand_params_tasks():
    """50 sets of exponents of mass, inertia, damping, friction in [-3, 3]: rule and seed (1234) of the Meta-DT code; 50
    fresh ones by the seed 20260101."""
    return rand_params_tasks(bodies=5, dofs=6)


def walker_rand_params_tasks():
    """50 sets of exponents of mass, inertia, damping, friction in [-3, 3]: the Meta-DT rule; seed 1234 is our choice; 50
    fresh ones by the seed 20260101."""
    return rand_params_tasks(bodies=8, dofs=9)


def gridworld_tasks():
    """21 goals: all cells (x, y) of the 5×5 grid outside the 2×2 corner of the start, in the order of 5·y + x."""
    return [{"goal": [x, y]} for y in range(5) for x in range(5) if x > 1 or y > 1]


def point_robot_sparse_tasks():
    """100 goals on the upper unit semi-circle, angle uniform in (0, π): default_rng(73), BOReL's seed."""
    angles = np.random.default_rng(73).uniform(0, np.pi, 100)
    return [{"goal": [float(np.cos(angle)), float(np.sin(angle))]} for angle in angles]


def ant_semicircle_sparse_tasks():
    """100 goals, the list of point_robot_sparse: uniform on the upper unit semi-circle, default_rng(73)."""
    return point_robot_sparse_tasks()


def point_robot_dense_tasks():
    """25 goals, uniform in the square [-1, 1]²: default_rng(73)."""
    return [{"goal": goal.tolist()} for goal in np.random.default_rng(73).uniform(-1, 1, (25, 2))]


def point_robot_wind_tasks():
    """50 winds, uniform in [-0.05, 0.05]²: default_rng(75), BOReL's seed."""
    return [{"wind": wind.tolist()} for wind in np.random.default_rng(75).uniform(-0.05, 0.05, (50, 2))]


def point_robot_wind_narrow_tasks():
    """50 winds, uniform in [-0.08, 0.08]²: default_rng(75)."""
    return [{"wind": wind.tolist()} for wind in np.random.default_rng(75).uniform(-0.08, 0.08, (50, 2))]


def point_robot_semicircle_tasks():
    """100 goals at equal angles in [0, π] on the upper unit semi-circle, in the order of default_rng(1337).permutation(100),
    which is ours: IDAQ draws a split of its own, unseeded, in every run."""
    angles = np.linspace(0, np.pi, 100)[np.random.default_rng(1337).permutation(100)]
    return [{"goal": [float(np.cos(angle)), float(np.sin(angle))]} for angle in angles]


def point_robot_semicircle_sparse_tasks():
    """The list of point_robot_semicircle."""
    return point_robot_semicircle_tasks()


def point_robot_wind_dense_tasks():
    """50 winds, uniform in [-0.05, 0.05]²: the list of FOCAL and IDAQ (legacy seed 1337, all x before all y)."""
    return [{"wind": wind.tolist()} for wind in np.random.RandomState(1337).uniform(-0.05, 0.05, (2, 50)).T]


def cheetah_vel_100_tasks():
    """100 speeds in m/s, uniform in [0, 3]: the list of FOCAL and IDAQ (numpy's legacy generator, seed 1337)."""
    return [{"velocity": velocity} for velocity in np.random.RandomState(1337).uniform(0, 3, 100).tolist()]


def escape_room_tasks():
    """65 door centres, angle uniform in (0, π): default_rng(75), BOReL's seed."""
    return [{"angle": angle} for angle in np.random.default_rng(75).uniform(0, np.pi, 65).tolist()]


def gymnasium_tasks():
    """One task: the reward as gymnasium defines it."""
    return [{"forward_reward_weight": 1.0}]


RULES = {
    "point_robot": point_robot_tasks,
    "cheetah_vel": cheetah_vel_tasks,
    "cheetah_dir": cheetah_dir_tasks,
    "ant_dir": ant_dir_tasks,
    "hopper_rand_params": hopper_rand_params_tasks,
    "walker_rand_params": walker_rand_params_tasks,
    "gridworld": gridworld_tasks,
    "point_robot_sparse": point_robot_sparse_tasks,
    "point_robot_dense": point_robot_dense_tasks,
    "point_robot_wind": point_robot_wind_tasks,
    "point_robot_wind_narrow": point_robot_wind_narrow_tasks,
    "point_robot_semicircle": point_robot_semicircle_tasks,
    "point_robot_semicircle_sparse": point_robot_semicircle_sparse_tasks,
    "point_robot_wind_dense": point_robot_wind_dense_tasks,
    "cheetah_vel_100": cheetah_vel_100_tasks,
    "escape_room": escape_room_tasks,
    "ant_semicircle_sparse": ant_semicircle_sparse_tasks,
    "gym_hopper": gymnasium_tasks,
    "gym_halfcheetah": gymnasium_tasks,
    "gym_walker2d": gymnasium_tasks,
}


def write_tasks(env_type, path):
    """Write the list that the rule of `env_type` makes."""
    rule = RULES[env_type]
    write_list(path, env_type, " ".join(rule.__doc__.split()), rule())


def write_list(path, env_type, source, tasks):
    """Write a task list, one task per line. source: where it comes from."""
    text = json.dumps({"env_type": env_type, "source": source, "tasks": []}, indent=1)
    lines = ",\n".join("  " + json.dumps(task) for task in tasks)
    path.write_text(text.replace('"tasks": []', f'"tasks": [\n{lines}\n ]') + "\n", encoding="utf-8")
    print(f"{path}: {len(tasks)} tasks")


if __name__ == "__main__":
    for name in RULES:
        write_tasks(name, TASK_DIR / f"{name}.json")
