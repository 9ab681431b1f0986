"""A Meta-DT with its rolling context and history as one TorchScript module: a file that needs torch alone, see examples/act.py.

What the agent adapted with (prompt, carried z) is inside; of the running episode the module keeps track itself.
"""

import warnings

import torch
from torch import nn

from src.evaluation.exploration import ExploringAgent
from src.models.meta_dt_agent import MetaDTAgent
from src.models.world_model import CONTEXT_SIZE, HIDDEN_SIZE
from src.run.errors import UserError


class Step(nn.Module):
    """One step as a function of tensors, one row. State: `initial`."""

    def __init__(self, agent, low, high):
        super().__init__()
        self.policy, self.world_model, self.length = agent.policy, agent.world_model, agent.history_length
        self.reads = agent.settings.context != "none" and agent.carried is None
        self.register_buffer("target", torch.tensor([float(agent.target or 0)]))
        self.register_buffer("context", torch.zeros(1, CONTEXT_SIZE) if agent.carried is None else agent.carried[:1].clone())
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.prompt = agent.prompt
        if self.prompt is not None:  # out of inference mode
            caches, mask = self.prompt
            self.prompt = [tuple(part.clone() for part in cache) for cache in caches], mask.clone()

    def initial(self):
        """Tensors: step; history of K steps (returns-to-go, observations, contexts, actions, time steps, mask); the last h
        transitions and their mask, or the encoder's hidden state."""
        d_s, d_a, length = len(self.policy.observation_mean), len(self.low), self.length
        window = max(1, self.world_model.horizon)
        return [
            torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, length), torch.zeros(1, length, d_s),
            torch.zeros(1, length, CONTEXT_SIZE), torch.zeros(1, length, d_a), torch.zeros(1, length, dtype=torch.long),
            torch.zeros(1, length, dtype=torch.bool), torch.zeros(1, window, d_s), torch.zeros(1, window, d_a),
            torch.zeros(1, window, 1), torch.zeros(1, window, dtype=torch.bool), torch.zeros(1, 1, HIDDEN_SIZE),
        ]  # fmt: skip

    def forward(self, observation, reward, state):
        """observation (1, d_s), reward (1, 1) that the last action brought -> action (1, d_a), state."""
        step, returns, observations, contexts, actions, steps, mask, past_o, past_a, past_r, past_mask, hidden = state
        begun = step > 0
        past_o, past_a, past_r = (
            _append(past, value) for past, value in ((past_o, observations[:, -1]), (past_a, actions[:, -1]), (past_r, reward))
        )
        past_mask = _append(past_mask, begun[:, 0])
        context = self.context
        if self.reads and self.world_model.horizon:
            context = self.world_model.encode(past_o, past_a, past_r, past_mask)
        elif self.reads:
            embedded = self.world_model.embed(past_o[:, -1], past_a[:, -1], reward)
            hidden = torch.where(begun[None], self.world_model.gru(embedded[:, None], hidden)[1], hidden)
            context = self.world_model.to_context(hidden[0])
        returns = _append(returns, torch.where(begun[:, 0], returns[:, -1] - reward[:, 0], self.target))
        observations, contexts = _append(observations, observation), _append(contexts, context)
        steps, mask = _append(steps, step[:, 0]), _append(mask, torch.ones_like(begun[:, 0]))
        actions = _append(actions, torch.zeros_like(actions[:, -1]))
        history = {
            "returns_to_go": returns, "observations": observations, "contexts": contexts, "actions": actions, "timesteps": steps,
            "mask": mask,
        }  # fmt: skip
        action = torch.minimum(torch.maximum(self.policy.act(history, self.prompt), self.low), self.high)
        actions = torch.cat([actions[:, :-1], action[:, None]], 1)
        state = [step + 1, returns, observations, contexts, actions, steps, mask, past_o, past_a, past_r, past_mask, hidden]
        return action, state


def _append(values, last):
    """(1, L, ...) moved on by one step, with `last` (1, ...) at the end."""
    return torch.cat([values[:, 1:], last[:, None]], 1)


class Episode(nn.Module):
    """What is saved. start() begins an episode; forward(observation (d_s,), reward) -> action (d_a,) within the bounds, where the
    reward is that of the action before (at the first step any number)."""

    def __init__(self, step, initial: list[torch.Tensor]):
        super().__init__()
        self.step = step
        self.initial = initial
        self.state = initial

    @torch.jit.export
    def start(self):
        self.state = self.initial

    def forward(self, observation: torch.Tensor, reward: float) -> torch.Tensor:
        action, self.state = self.step(observation[None], torch.full((1, 1), reward), self.state)
        return action[0]


@torch.no_grad()
def episode_module(agent, action_space):
    """The next episode of an adapted Agent of one row, as a TorchScript module; matrix products in float32.

    Raises UserError where the agent is no Meta-DT, or explores.
    """
    if isinstance(agent, ExploringAgent):
        if agent.number < agent.warmup or not agent.warmup:
            raise UserError("this policy begins the episode by exploring: export it after its warm-up episodes")
        agent = agent.agent
    if not isinstance(agent, MetaDTAgent):
        raise UserError("only policies of Meta-DT become TorchScript modules")
    low, high = (torch.from_numpy(bound).float() for bound in (action_space.low, action_space.high))
    step = Step(agent, low, high).eval().requires_grad_(False)
    state = step.initial()
    example = torch.zeros(1, len(agent.policy.observation_mean)), torch.zeros(1, 1), state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are the same at every step
        return torch.jit.script(Episode(torch.jit.trace(step, example, strict=False), state).eval())
