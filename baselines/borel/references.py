"""Reference returns of the BOReL domains: what policies earn that need no learning.

    python -m baselines.borel.references --domain gridworld       # under a minute; configs/references/gridworld.json

Every number is played on the environment itself. `references` describes the whole task distribution: for each level its
mean return in each of the K episodes, their sum, and the standard error of the sum where something was drawn at random.
`per_task` gives the K returns on every task of configs/tasks/<domain>.json, to stand beside the results of a method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from baselines.borel.gridworld_tours import optimal_tours
from envs.borel_points import (
    MAX_STEP,
    PointRobotDenseEnv,
    PointRobotSparseEnv,
    PointRobotWindEnv,
    PointRobotWindNarrowEnv,
    directions,
    greedy_steps,
)
from envs.escape_room import BLOCKED_RADIUS, HALF_DOOR, OUTER, EscapeRoomEnv, escape_steps
from envs.gridworld import GoalBelief, GridworldEnv, moves_towards
from envs.settings import family_settings
from envs.tasks import load_tasks
from src.run.errors import main_guard
from src.run.files import write_json
from src.run.flags import Parser, natural
from src.run.provenance import provenance
from src.run.seeding import derive, numpy_generator

# -------------------------------------------------------------------------------------------------------------- playing


class Policy:
    """B rows that may remember what they saw on their task; this one only steers: observations (B, d) -> actions."""

    def __init__(self, steer):
        self.act = steer

    def begin_episode(self):
        """Called before each of the K episodes."""

    def observe(self, next_observations, rewards):
        """What the last actions led to: next observations (B, d), rewards (B,)."""


def play(batch, policy, episodes, horizon, seed=0):
    """Returns (B, K) of a policy over K episodes on a batch of environments; `seed` decides random starts."""
    returns = np.zeros((batch.size, episodes))
    for episode in range(episodes):
        observations = batch.reset([derive(seed, row, episode) for row in range(batch.size)])
        policy.begin_episode()
        for _ in range(horizon):
            observations, rewards = batch.step(policy.act(observations))
            policy.observe(observations, rewards)
            returns[:, episode] += rewards
    return returns


def steps_of(env_class):
    """Steps of an episode."""
    return family_settings(env_class.env_type)["max_episode_steps"]


def play_repeated(env_class, tasks, make_policy, episodes, repetitions=1, start=None, seed=0):
    """Play every task several times.

    Args:
        tasks: dict of arrays (N, ...).
        make_policy: function (tasks with one row per play, their task ids) -> Policy.
        start: a start distribution of the batch other than its default.

    Returns:
        (N, repetitions, K).
    """
    rows = {key: np.repeat(values, repetitions, axis=0) for key, values in tasks.items()}
    batch = env_class.batch_class(rows, start=start) if start else env_class.batch_class(rows)
    task_ids = np.repeat(np.arange(batch.size // repetitions), repetitions)
    returns = play(batch, make_policy(rows, task_ids), episodes, steps_of(env_class), seed)
    return returns.reshape(-1, repetitions, episodes)


def play_levels(env_class, tasks, train_ids, episodes, repetitions=1, seed=0):
    """The environment's own levels (trivial, task_blind, best_known): name -> returns (N, repetitions, K)."""

    def steering(policy):
        return lambda rows, task_ids: Policy(lambda observations: policy(observations, task_ids))

    policies = env_class.reference_policies(tasks, train_ids)
    return {
        name: play_repeated(env_class, tasks, steering(policy), episodes, repetitions, seed=seed)
        for name, policy in policies.items()
    }


# -------------------------------------------------------------------------------------- exploration without learning


def steps_towards(targets, observations):
    """Greedy steps of a point robot, (B, 2)."""
    return greedy_steps(targets - observations)


class ThompsonPolicy(Policy):
    """Thompson sampling: walk to one hypothesis drawn from the belief and stay with it until the episode ends.

    Args:
        belief: has `goals` (..., N, 2), `possible` (B, N) bool, `update` and `draw`.
        steer: function (targets (B, 2), observations (B, 2)) -> actions.
    """

    def __init__(self, belief, steer, generator):
        self.belief, self.steer, self.generator = belief, steer, generator
        self.goals = np.broadcast_to(belief.goals, (*belief.possible.shape, 2))
        self.rows = np.arange(len(self.goals))

    def begin_episode(self):
        self.choice = self.belief.draw(self.generator)

    def act(self, observations):
        return self.steer(self.goals[self.rows, self.choice], observations)

    def observe(self, next_observations, rewards):
        self.belief.update(next_observations, rewards)


class WalkAndRedrawPolicy(ThompsonPolicy):
    """Draws anew as soon as its hypothesis is refuted, and turns to the goal at the first reward."""

    def observe(self, next_observations, rewards):
        super().observe(next_observations, rewards)
        possible = self.belief.possible[self.rows, self.choice]
        self.choice = np.where(possible, self.choice, self.belief.draw(self.generator))


class SemicircleBelief:
    """The belief over 181 points equally spaced on the semi-circle; the one nearest to a row's goal is that goal.

    A position without reward rules out the points in reach of it. At the first reward the goal counts as known.
    """

    def __init__(self, goals):
        points = directions(np.linspace(0, np.pi, 181))
        self.answer = np.linalg.norm(points - goals[:, None], axis=-1).argmin(-1)
        self.goals = np.tile(points, (len(goals), 1, 1))
        self.goals[np.arange(len(goals)), self.answer] = goals
        self.possible = np.ones(self.goals.shape[:2], dtype=bool)

    def update(self, next_observations, rewards):
        in_reach = PointRobotSparseEnv.compute_success(next_observations[:, None], {"goal": self.goals})
        known = np.arange(self.possible.shape[1]) == self.answer[:, None]
        self.possible &= np.where(rewards[:, None] > 0, known, ~in_reach)

    draw = GoalBelief.draw


class ArcSweepPolicy(Policy):
    """Near-optimal search of the semi-circle: to the point at 0.2 rad, then along the arc until the first reward.

    Each step on the arc aims at the farthest point of the circle, on a grid of 0.005 rad, that one action reaches.
    After the first reward it walks greedily to the goal, in later episodes from the start.
    """

    FIRST_ANGLE = 0.2
    INCREMENTS = np.arange(28, 0, -1) * 0.005

    def __init__(self, goals):
        self.goals = goals
        self.found = np.zeros(len(goals), dtype=bool)

    def begin_episode(self):
        self.on_arc = np.zeros(len(self.goals), dtype=bool)

    def act(self, observations):
        approach = greedy_steps(directions(self.FIRST_ANGLE) - observations)
        self.on_arc |= np.abs(approach).max(-1) < 1e-6
        angles = np.arctan2(observations[:, 1], observations[:, 0])
        steps = directions(angles[:, None] + self.INCREMENTS) - observations[:, None]  # (B, 28, 2)
        farthest = (np.abs(steps).max(-1) <= MAX_STEP).argmax(-1)
        along_arc = steps[np.arange(len(steps)), farthest]
        search = np.where(self.on_arc[:, None], along_arc, approach)
        return np.where(self.found[:, None], greedy_steps(self.goals - observations), search)

    def observe(self, next_observations, rewards):
        self.found |= rewards > 0


class DoorProbePolicy(Policy):
    """Near-optimal search for the door: probe the wall in eight sectors in turn, step out where it opens, stop.

    Each probe walks to radius 0.99 and takes one outward step. Later episodes walk through the known door.

    The first episode earns 33.5 in the mean over the doors (17 to 50), one less than by a count in which the tenth step already
    ends outside (34.5, 18 to 51): played step by step, the robot is at radius 0.99 after step 10 and outside only after step 11.
    """

    ANGLES = np.arange(1, 16, 2) * HALF_DOOR

    def __init__(self, door_angles):
        self.door_angles = door_angles
        self.found = np.zeros(len(door_angles), dtype=bool)

    def begin_episode(self):
        self.known = self.found.copy()
        self.probe = np.zeros(len(self.door_angles), dtype=int)
        self.probing = np.zeros(len(self.door_angles), dtype=bool)

    def act(self, observations):
        outward = directions(self.ANGLES[self.probe])
        approach = BLOCKED_RADIUS * outward - observations
        self.probing = ~self.found & (np.abs(approach).max(-1) < 1e-6)
        search = np.where(self.probing[:, None], greedy_steps(outward), greedy_steps(approach))
        outside = np.linalg.norm(observations, axis=-1) > OUTER
        walk = np.where(outside[:, None], 0, search)
        return np.where(self.known[:, None], escape_steps(self.door_angles, observations), walk)

    def observe(self, next_observations, rewards):
        self.found |= rewards > 0
        self.probe = np.minimum(self.probe + (self.probing & ~self.found), len(self.ANGLES) - 1)


class TourPolicy(Policy):
    """Walks given search tours, actions (K, H), until the goal is found; then to the goal."""

    def __init__(self, tours, goals):
        self.tours, self.goals = tours, goals
        self.found = np.zeros(len(goals), dtype=bool)
        self.episode = -1

    def begin_episode(self):
        self.episode += 1
        self.moves = iter(self.tours[self.episode])

    def act(self, observations):
        return np.where(self.found, moves_towards(self.goals, observations), next(self.moves))

    def observe(self, next_observations, rewards):
        self.found |= rewards > 0


# -------------------------------------------------------------------------------------------------------------- domains


def gridworld_explorers(tasks, seed):
    """Explorers of a domain: name -> returns (N, repetitions, K) on `tasks`."""
    _, tours = optimal_tours()

    def sampled(policy_class):
        generator = numpy_generator(seed, "gridworld")
        steer = partial(moves_towards, generator=generator)
        return play_repeated(
            GridworldEnv,
            tasks,
            lambda rows, ids: policy_class(GoalBelief(len(ids)), steer, generator),
            episodes=4,
            repetitions=2000,
        )

    return {
        "thompson": sampled(ThompsonPolicy),
        "walk_and_redraw": sampled(WalkAndRedrawPolicy),
        "bayes_optimal": play_repeated(GridworldEnv, tasks, lambda rows, ids: TourPolicy(tours, rows["goal"]), 4),
    }


def semicircle_explorers(tasks, seed):
    """See gridworld_explorers."""

    def sampled(policy_class):
        generator = numpy_generator(seed, "semi-circle")
        return play_repeated(
            PointRobotSparseEnv,
            tasks,
            lambda rows, ids: policy_class(SemicircleBelief(rows["goal"]), steps_towards, generator),
            episodes=2,
            repetitions=50,
        )

    return {
        "thompson": sampled(ThompsonPolicy),
        "walk_and_redraw": sampled(WalkAndRedrawPolicy),
        "arc_sweep": play_repeated(PointRobotSparseEnv, tasks, lambda rows, ids: ArcSweepPolicy(rows["goal"]), 2),
    }


def escape_explorers(tasks, seed):
    """See gridworld_explorers."""

    def knowing(rows, ids):
        return Policy(lambda observations: escape_steps(rows["angle"], observations))

    return {
        "door_probe": play_repeated(EscapeRoomEnv, tasks, lambda rows, ids: DoorProbePolicy(rows["angle"]), 2),
        "best_known_random_start": play_repeated(EscapeRoomEnv, tasks, knowing, 2, 10, start="uniform", seed=seed),
    }


def no_explorers(tasks, seed):
    """The levels of the environment are all there is."""
    return {}


@dataclass(frozen=True)
class Domain:
    """How a domain is played, and the tasks that stand for its whole distribution."""

    env_class: type
    episodes: int  # K
    num_train: int  # tasks [0, num_train) of the task list are the training tasks
    population: Callable  # function (seed) -> task parameters
    description: str  # of the population
    explorers: Callable = no_explorers
    repetitions: int = 1  # of each task by the levels; more than one where starts are random


DOMAINS = {
    "gridworld": Domain(GridworldEnv, 4, 21, lambda seed: load_tasks("gridworld"), "all 21 goals", gridworld_explorers),
    "point_robot_sparse": Domain(
        PointRobotSparseEnv,
        2,
        80,
        lambda seed: {"goal": directions(np.linspace(0, np.pi, 181))},
        "181 goals equally spaced on the semi-circle",
        semicircle_explorers,
    ),
    "point_robot_dense": Domain(
        PointRobotDenseEnv,
        3,
        20,
        lambda seed: {"goal": np.random.default_rng(seed).uniform(-1, 1, (500, 2))},
        "500 goals drawn uniformly from the square",
        repetitions=20,
    ),
    "point_robot_wind": Domain(
        PointRobotWindEnv,
        2,
        40,
        lambda seed: {"wind": np.random.default_rng(seed).uniform(-0.05, 0.05, (2000, 2))},
        "2000 winds drawn uniformly",
    ),
    "point_robot_wind_narrow": Domain(
        PointRobotWindNarrowEnv,
        2,
        40,
        lambda seed: {"wind": np.random.default_rng(seed).uniform(-0.08, 0.08, (2000, 2))},
        "2000 winds drawn uniformly",
    ),
    "escape_room": Domain(
        EscapeRoomEnv,
        2,
        60,
        lambda seed: {"angle": (np.arange(2000) + 0.5) * np.pi / 2000},  # no door's edge lies on a probe
        "2000 door centres equally spaced in (0, π)",
        escape_explorers,
    ),
}

DEFINITIONS = {
    "trivial": "no action",
    "task_blind": "the best fixed target on the training tasks (in the wind: the goal, ignoring the wind)",
    "best_known": "knows the task",
    "thompson": "walks to one hypothesis drawn from the belief and stays with it until the episode ends",
    "walk_and_redraw": "draws a new hypothesis as soon as one is refuted, turns to the goal at the first reward",
    "bayes_optimal": "the exact optimum: search tours by dynamic programming, then the goal",
    "arc_sweep": "searches along the arc from 0.2 rad, counter-clockwise; after the first reward as best_known",
    "door_probe": "probes the wall at eight angles; in the second episode as best_known",
    "best_known_random_start": "best_known from the random starts of data collection",
}


def play_domain(domain, tasks, train_ids, seed):
    """All levels and explorers: name -> returns (N, repetitions, K)."""
    played = play_levels(domain.env_class, tasks, train_ids, domain.episodes, domain.repetitions, seed)
    return {**played, **domain.explorers(tasks, seed)}


def summary(returns):
    """Returns (N, repetitions, K) of one level -> its entry in `references`."""
    num_tasks, repetitions, _ = returns.shape
    per_episode = returns.mean((0, 1))
    # the tasks are the whole population: only what varies within a task is chance
    variance = returns.sum(-1).var(1, ddof=1).mean() / (num_tasks * repetitions) if repetitions > 1 else 0.0
    return {
        "per_episode": [round(float(value), 4) for value in per_episode],
        "sum": round(float(per_episode.sum()), 4),
        "standard_error": round(float(np.sqrt(variance)), 4),
        "plays": num_tasks * repetitions,
    }


def reference_document(name, seed):
    """The content of configs/references/<name>.json."""
    domain = DOMAINS[name]
    population = domain.population(seed)
    num_population = len(next(iter(population.values())))
    tasks = load_tasks(name)
    played = play_domain(domain, population, np.arange(num_population), seed)
    per_task = play_domain(domain, tasks, np.arange(domain.num_train), seed)
    return {
        "env_type": name,
        "command": provenance()["command"],
        "seed": seed,
        "episodes": domain.episodes,
        "max_episode_steps": steps_of(domain.env_class),
        "population": domain.description,
        "references": {level: {"definition": DEFINITIONS[level], **summary(returns)} for level, returns in played.items()},
        "per_task": {level: returns.mean(1).round(4).tolist() for level, returns in per_task.items()},
    }


@main_guard
def main(argv=None):
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--domain", required=True, choices=DOMAINS, help="which environment")
    parser.add_argument("--seed", type=natural, default=0, help="of drawn populations, hypotheses and random starts")
    parser.add_argument("--output_dir", default="configs/references", help="folder of the JSON file")
    args = parser.parse_args(argv)
    document = reference_document(args.domain, args.seed)
    path = Path(args.output_dir) / f"{args.domain}.json"
    write_json(path, document)
    for level, entry in document["references"].items():
        episodes = ", ".join(f"{value:.2f}" for value in entry["per_episode"])
        print(f"{level:20} {entry['sum']:8.3f} ± {entry['standard_error']:.3f}   per episode {episodes}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
