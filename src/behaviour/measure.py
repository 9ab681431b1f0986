"""How good behaviour policies are."""

import numpy as np

from src.behaviour.policies import BehaviourPolicies, uniform_actions
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.rollout import returns, rollout
from src.run.seeding import derive, numpy_generator, torch_generator


def measure(run, tasks, step, weights, episodes, deterministic=False, frame=None):
    """Undiscounted returns (P, episodes) of P policies, each on its own task, all episodes played side by side.

    run: RunSettings. weights: dict name -> (P, ...).
    The draws of a policy depend on (seed, task, step) alone, not on the other policies.
    """
    space = run.env.make().action_space
    noise = [torch_generator(run.seed, "evaluate", task, step) for task in tasks]
    policies = BehaviourPolicies(weights, space.low, space.high, run.device, frame)

    def act(observations):
        grid = observations.reshape(len(tasks), episodes, -1)
        return policies.act(grid, noise, deterministic).reshape(len(observations), *space.shape)

    batch = make_batch(run.env, np.repeat(tasks, episodes))
    seeds = [derive(run.seed, "evaluate", task, step, "reset", episode) for task in tasks for episode in range(episodes)]
    episode = rollout(PolicyAgent(act), batch, seeds, run.env.max_episode_steps)
    return returns(episode).reshape(len(tasks), episodes)


def measure_random(run, task, episodes):
    """Undiscounted returns of uniform random actions on one task, a list of at least ten."""
    random = uniform_actions(run.env.make().action_space, numpy_generator(run.seed, "random", task))
    seeds = [derive(run.seed, "random", task, "reset", episode) for episode in range(max(episodes, 10))]
    batch = make_batch(run.env, [task] * len(seeds))
    return returns(rollout(PolicyAgent(random), batch, seeds, run.env.max_episode_steps)).tolist()
