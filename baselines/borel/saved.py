"""A trained policy off its training: what a run's folder keeps of it, and how it acts again without any data.

model.safetensors: policy network and belief model; agent.json: the belief model's configuration (src/evaluation/saved.py).
Offline and online training keep the same.
"""

import torch
from torch import nn

from baselines.borel.evaluate import BeliefAgent, evaluate
from baselines.borel.problem import Problem
from baselines.borel.settings import AgentSettings, MetaEvaluation
from baselines.borel.vae import BeliefModel
from envs.multi_episode import add_flag, scale_actions, unscale_actions
from src.evaluation.saved import save_known
from src.run.files import save_tensors
from src.run.seeding import torch_generator


class HyperPolicy(nn.Module):
    """All that acts: a BeliefModel and the network of a policy on hyper-states."""

    def __init__(self, belief, policy):
        super().__init__()
        self.belief, self.policy = belief, policy


def save_policy(directory, problem, model, agent):
    """Keep a BeliefModel and a policy (DQN or SAC, a stack of one) of a Problem in the run's folder."""
    save_tensors(directory / "model.safetensors", HyperPolicy(model, agent.policy_network()).state_dict())
    save_known(directory, "borel", {}, {"warmup": problem.episodes - 1, "belief": model.config})


class EnvironmentAgent:
    """A BeliefAgent in the environment itself: what `PolicyBatch` does around it in training, the flag and the range of actions,
    is done here. It goes on with its belief from episode to episode, also beyond the K-th."""

    def __init__(self, problem, agent):
        self.problem, self.agent = problem, agent

    def adapt(self, episodes):
        self.agent.adapt(episodes)

    def start(self, observations):
        self.steps = 0
        self.agent.start(self._flagged(observations))

    def act(self):
        return scale_actions(self.agent.act(), self.problem.space)

    def observe(self, actions, rewards, next_observations):
        self.steps += 1
        self.agent.observe(unscale_actions(actions, self.problem.space), rewards, self._flagged(next_observations))

    def _flagged(self, observations):
        return add_flag(observations, self.steps == self.problem.horizon, self.problem.episodes)


def restore(saved):
    """Saved (src/evaluation/saved.py) -> (HyperPolicy, function warmup -> EnvironmentAgent)."""
    settings, evaluation = saved.pick(AgentSettings, MetaEvaluation)
    problem, belief = Problem(saved.env, saved.settings["max_rollouts_per_task"]), BeliefModel(saved.told["belief"])
    size = problem.observation_size + 2 * belief.config["task_embedding_size"]
    agent = settings.make(1, problem, size, torch.Generator(), saved.device)
    model = saved.filled(HyperPolicy(belief, agent.policy_network()))

    def acting(_):
        generator = torch_generator(saved.seed, "evaluation noise")
        return EnvironmentAgent(problem, BeliefAgent(belief, agent, evaluation.eval_deterministic, generator))

    return model, acting


def measured(agent, env, task_ids, rollouts, warmup, seed, later):
    """What an EnvironmentAgent earns in the roll-outs of its table row, to the last digit; arguments as of
    src/evaluation/evaluate.py, of which its Problem knows the environment and the K episodes."""
    inner = agent.agent
    return evaluate(agent.problem, inner.model, inner.agent, task_ids, rollouts, seed, inner.deterministic)
