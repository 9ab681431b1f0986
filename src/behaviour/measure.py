"""How good behaviour policies are."""

import numpy as np

from src.behaviour.policies import BehaviourPolicies, uniform_actions
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.rollout import returns, rollout
from src.run.seeding import derive, numpy_generator, torch_generator


def evaluate(env, task, act, episodes, *names):
    """Undiscounted returns (episodes,) of a policy on one task; `names` seed the resets."""
    batch = make_batch(env, [task] * episodes)
    seeds = [derive(*names, "reset", episode) for episode in range(episodes)]
    return returns(rollout(PolicyAgent(act), batch, seeds, env.max_episode_steps))


def measure(args, tasks, step, weights, deterministic=False, frame=None):
    """Undiscounted returns (P, eval_episodes) of P policies, each on its own task, all episodes played side by side.

    weights: dict name -> (P, ...). The draws of a policy depend on (seed, task, step) alone, not on the other policies.
    """
    space = args.env.make().action_space
    noise = [torch_generator(args.seed, "evaluate", task, step) for task in tasks]
    policies = BehaviourPolicies(weights, space.low, space.high, args.device, frame)
    episodes = args.eval_episodes

    def act(observations):
        grid = observations.reshape(len(tasks), episodes, -1)
        return policies.act(grid, noise, deterministic).reshape(len(observations), *space.shape)

    batch = make_batch(args.env, np.repeat(tasks, episodes))
    seeds = [derive(args.seed, "evaluate", task, step, "reset", episode) for task in tasks for episode in range(episodes)]
    episode = rollout(PolicyAgent(act), batch, seeds, args.env.max_episode_steps)
    return returns(episode).reshape(len(tasks), episodes)


def measure_random(args, task):
    """Undiscounted returns of uniform random actions on one task, a list of at least ten."""
    random = uniform_actions(args.env.make().action_space, numpy_generator(args.seed, "random", task))
    return evaluate(args.env, task, random, max(args.eval_episodes, 10), args.seed, "random", task).tolist()
