"""Meta-DT acting: many episodes at once, contexts from the running episodes, prompts from warm-up episodes."""

import math

import numpy as np
import torch

from src.data.windows import EpisodeTensors
from src.evaluation.batch import episode_lengths
from src.models.world_model import CONTEXT_SIZE, RunningContexts, episode_contexts, prediction_errors


class MetaDTAgent:
    """A frozen policy and world model that act in B episodes at once (the interface that src/evaluation/evaluate.py asks for).

    Args:
        policy, world_model: MetaDT and WorldModel on one device.
        history_length: K. prompt_length: k. error_scale: see `prediction_errors`.
        select: how the prompt segment is chosen; pool: which warm-up episode it is cut from, "best" by return (ours) or "top3",
            uniform among the three best (the official code).
        return_bounds: (T, 2) least and greatest return-to-go of the training data at each step; returns-to-go are clamped to
            them (None: never clamped, as in the paper).
        use_context: False replaces z by zeros (the ablation).
        carry_context: in an episode with a prompt every z is what the warm-up episodes told by their ends, the mean of their
            last z (ours), and not that of the episode itself, which begins by knowing nothing.
        known_contexts: (C, 16), with carry_context: each warm-up episode after the first tries the next of these, and the episode
            after them keeps the z that was paid best, what the first one told among them (ours; None: no trials). Where a new
            task is like no known one, z tells little; which known behaviour serves it best shows when it is tried.
        dtype: torch.bfloat16 for autocast, or None.
        generator: torch.Generator that draws the actions of a stochastic policy; None plays the mean action.
    """

    def __init__(
        self, policy, world_model, history_length, prompt_length, error_scale=(1.0, 1.0), select="argmax", pool="best",
        return_bounds=None, use_context=True, carry_context=False, dtype=None, generator=None,
        known_contexts=None,
    ):  # fmt: skip
        self.policy, self.world_model = policy.eval(), world_model.eval()
        self.history_length, self.prompt_length, self.error_scale = history_length, prompt_length, error_scale
        self.select, self.pool, self.return_bounds = select, pool, return_bounds
        self.use_context, self.carry_context = use_context, carry_context and use_context
        self.known_contexts = known_contexts if self.carry_context else None
        self.dtype, self.generator = dtype, generator
        self.device = policy.action_scale.device

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    @torch.inference_mode()
    def start(self, observations, target_returns, prompt=None):
        """Begin B episodes: observations (B, d_s), target_returns (B,), prompt as `make_prompt` gives or None."""
        self.prompt, self.carried = None, None
        if prompt is not None:
            self.carried = prompt.get("carried_context")
            with self._autocast():
                self.prompt = self.policy.encode_prompt(prompt)
        self.returns_to_go = [torch.as_tensor(target_returns, dtype=torch.float32, device=self.device)]
        self.observations, self.actions, self.rewards = [self._tensor(observations)], [], []
        reads = self.use_context and self.carried is None
        self.running = RunningContexts(self.world_model, len(observations)) if reads else None
        self.contexts = [self._context()]
        self.begin = 0

    def forget(self):
        """Let the policy's history begin anew at the current step: its time is 0 again, its return-to-go the target.

        The context stays: what the steps so far told of the task. So steps of exploration, which no episode of the data has, are
        not in the history, and what follows looks like an episode of an agent that knows its task from the start (ours).
        """
        self.begin = len(self.actions)
        self.returns_to_go[-1] = self.returns_to_go[0]

    @torch.inference_mode()
    def act(self):
        """Actions (B, d_a) for the current step, numpy."""
        step, first = len(self.actions), max(self.begin, len(self.actions) + 1 - self.history_length)
        placeholder = [torch.zeros_like(self.policy.action_scale).expand(len(self.observations[0]), -1)]
        returns_to_go = torch.stack(self.returns_to_go[first:], 1)
        if self.return_bounds is not None:
            low, high = self.return_bounds[first - self.begin : step + 1 - self.begin].unbind(-1)
            returns_to_go = returns_to_go.clamp(low, high)
        history = {
            "returns_to_go": returns_to_go,
            "observations": torch.stack(self.observations[first:], 1),
            "contexts": torch.stack(self.contexts[first:], 1),
            "actions": torch.stack(self.actions[first:] + placeholder, 1),
            "timesteps": torch.arange(first - self.begin, step + 1 - self.begin, device=self.device)[None],
        }
        with self._autocast():
            return self.policy.act(history, self.prompt, self.generator).cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        """What the environment answered: actions as they were played (B, d_a), rewards (B,), next observations (B, d_s)."""
        self.actions.append(self._tensor(actions))
        self.rewards.append(self._tensor(rewards))
        if self.running:
            self.running.step(self.observations[-1], self.actions[-1], self.rewards[-1])
        self.observations.append(self._tensor(next_observations))
        self.returns_to_go.append(self.returns_to_go[-1] - self.rewards[-1])
        self.contexts.append(self._context())

    def _context(self):
        if self.carried is not None:
            return self.carried
        return self.running.current if self.running else torch.zeros(len(self.observations[0]), CONTEXT_SIZE, device=self.device)

    def _tensor(self, values):
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.device)

    # -------------------------------------------------------------------------------------------------------- few-shot

    def make_prompt(self, pool, generator, trial=False):
        """Prompt of every row from its own warm-up episodes.

        Args:
            pool: list of N episode dicts with observations (B, T + 1, d_s), actions (B, T, d_a), rewards (B, T), as
                `rollout` gives, and with known_contexts the carried_context (B, 16) that each but the first kept.
            generator: torch.Generator for the random choices. trial: the next one is a warm-up episode again.
        Returns: dict of tensors (B, k, ...), and carried_context (B, 16) with `carry_context`.
        """
        returns = torch.stack([self._tensor(episode["rewards"]).sum(1) for episode in pool], 1)  # (B, N)
        ranked = returns.argsort(1, descending=True)
        rows = torch.arange(len(ranked), device=self.device)
        choice = torch.zeros(len(ranked), dtype=torch.long)
        if self.pool == "top3":
            choice = torch.randint(min(3, len(pool)), (len(ranked),), generator=generator)
        chosen = ranked[rows, choice.to(self.device)]
        observations, actions, rewards = (
            torch.stack([self._tensor(episode[key]) for episode in pool], 1)[rows, chosen]
            for key in ("observations", "actions", "rewards")
        )
        lengths = torch.stack([self._lengths(episode) for episode in pool], 1)[rows, chosen]
        episodes = build_episodes(self.world_model, observations, actions, rewards, lengths, self.error_scale, self.use_context)
        prompt = episodes.prompts(rows, self.prompt_length, self.world_model.horizon, self.select, generator)
        if self.carry_context:
            prompt["carried_context"] = self._carried(pool, returns, trial)
        if self.known_contexts is not None:  # the policy learned prompts of the task that z tells
            prompt["contexts"] = prompt["carried_context"][:, None].expand(-1, self.prompt_length, -1)
        return prompt

    def _carried(self, pool, returns, trial):
        """The context that the next episode keeps, (B, 16), after a pool of N with returns (B, N)."""
        if self.known_contexts is None:
            return torch.stack([self._last_context(episode) for episode in pool]).mean(0)
        if trial:
            return self.known_contexts[(len(pool) - 1) % len(self.known_contexts)].expand(len(returns), -1)
        tried = torch.stack([self._last_context(pool[0]), *(episode["carried_context"] for episode in pool[1:])], 1)
        return tried[torch.arange(len(tried), device=self.device), returns.argmax(1)]

    def _last_context(self, episode):
        """z after the last step of an episode dict, (B, 16)."""
        arrays = (self._tensor(episode[key]) for key in ("observations", "actions", "rewards"))
        contexts = episode_contexts(self.world_model, *arrays)
        return contexts[torch.arange(len(contexts), device=self.device), self._lengths(episode)]

    def _lengths(self, episode):
        """Steps of every row of an episode dict until its end, (B,)."""
        return torch.as_tensor(episode_lengths(episode["rewards"], episode), device=self.device)


def build_episodes(world_model, observations, actions, rewards, lengths, error_scale, use_context=True, contexts=None):
    """EpisodeTensors with contexts and world-model errors; tensors as there, lengths None means full length.

    contexts: those of `episode_contexts`, where they are known already.
    use_context: False leaves zeros in place of z; the errors, which choose the prompt, still come from the world model.
    """
    if lengths is None:
        lengths = torch.full((len(rewards),), rewards.shape[1], device=rewards.device)
    if contexts is None:
        contexts = episode_contexts(world_model, observations, actions, rewards)
    known = contexts
    if not world_model.horizon:  # the prompt carries the episode's last z, so its segment is what even that z misses
        known = contexts[torch.arange(len(lengths), device=lengths.device), lengths][:, None].expand(-1, rewards.shape[1], -1)
    errors = prediction_errors(world_model, observations, actions, rewards, known, error_scale)
    if not use_context:
        contexts = torch.zeros_like(contexts)
    return EpisodeTensors(observations, actions, rewards, lengths, contexts, errors)


def training_errors(world_model, observations, actions, rewards, lengths, contexts):
    """Root mean square of each head's error on the training data: what the errors that choose a prompt are divided by."""
    inside = torch.arange(rewards.shape[1], device=rewards.device) < lengths[:, None]
    heads = ((1.0, math.inf), (math.inf, 1.0))
    errors = [prediction_errors(world_model, observations, actions, rewards, contexts, scale)[inside] for scale in heads]
    return [float(values.square().mean().sqrt()) + 1e-12 for values in errors]


def return_bounds(episodes, steps):
    """(T, 2) least and greatest return-to-go of the training data at each step; no bound where no episode is that long."""
    inside = torch.arange(episodes.returns_to_go.shape[1], device=episodes.lengths.device) < episodes.lengths[:, None]
    low = episodes.returns_to_go.masked_fill(~inside, torch.inf).amin(0)
    high = episodes.returns_to_go.masked_fill(~inside, -torch.inf).amax(0)
    none = low > high
    bounds = torch.stack([low.masked_fill(none, -torch.inf), high.masked_fill(none, torch.inf)], -1)
    beyond = bounds.new_tensor([-torch.inf, torch.inf]).expand(max(0, steps - len(bounds)), 2)
    return torch.cat([bounds, beyond])
