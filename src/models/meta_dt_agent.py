"""Meta-DT acting: many episodes at once, contexts from the running episodes, prompts from warm-up episodes."""

import argparse
import dataclasses
import math

import torch

from src.data.prompts import SELECTIONS
from src.data.windows import EpisodeTensors
from src.evaluation.agent import as_tensor
from src.models.steps import Steps
from src.models.world_model import CONTEXT_SIZE, RunningContexts, episode_contexts, prediction_errors
from src.run.flags import real
from src.run.seeding import torch_generator
from src.run.settings import setting

LEFT_OUT = 1e30  # an error that is divided by it counts for nothing; JSON has no infinity


def automatic_or_number(value):
    """ "auto", or a finite number."""
    try:
        return value if value == "auto" else real(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor auto") from None


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """adaptation to a task"""

    context: str = setting(
        "running", "z of the running episode; carried: after warm-up, what those episodes told by their ends, the mean (ours); "
        "tried: warm-up episodes try the z of training tasks, the best paid one is carried (ours); none: zeros (the ablation)",
        choices=["running", "carried", "tried", "none"],
    )  # fmt: skip
    prompt_select: str = setting(
        "argmax", "prompt segment by the world model's error: largest (the paper), in proportion (the official code); by chance; "
        "the last; none: no prompt tokens", choices=[*SELECTIONS, "none"],
    )  # fmt: skip
    target_return: str | float = setting(
        "auto", "return that is asked for: a number (=-5 for a negative one), or the mean of the training tasks' best",
        automatic_or_number,
    )  # fmt: skip


class MetaDTAgent:
    """A frozen policy and world model as an Agent (src/evaluation/agent.py).

    Args:
        policy, world_model: MetaDT and WorldModel on one device.
        history_length: K. prompt_length: k. error_scale: see `prediction_errors`.
        target: target return, a number or one per row; None where the policy is not conditioned on it.
        settings: Adaptation. The prompt is cut from one of the three best warm-up episodes, by chance (the official code).
            context "carried": in an episode after warm-up every z is the mean of the last z of the episodes so far, and not that
            of the episode itself, which begins by knowing nothing. "tried":
            each warm-up episode after the first tries the next of `known_contexts` (C, 16), and the episode after them keeps
            the z that was paid best, what the first one told among them. Where a new task is like no known one, z tells little;
            which known behaviour serves it best shows when it is tried.
        warmup: N, episodes before the evaluated one; only these try contexts.
        dtype: torch.bfloat16 for autocast, or None.
        seed: of the random choices.
    """

    def __init__(
        self, policy, world_model, history_length, prompt_length, target, settings=Adaptation(), *, warmup=0,
        error_scale=(1.0, 1.0), known_contexts=None, dtype=None, seed=0,
    ):  # fmt: skip
        self.policy, self.world_model = policy.eval(), world_model.eval()
        self.history_length, self.prompt_length, self.error_scale = history_length, prompt_length, error_scale
        self.target, self.settings, self.warmup = target, settings, warmup
        self.known_contexts, self.dtype, self.seed = known_contexts, dtype, seed
        self.device = policy.action_scale.device

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    @torch.inference_mode()
    def adapt(self, episodes):
        """Prompt and carried z of the next episode from those so far; see the contract of Agent."""
        self.prompt, self.carried = None, None
        if not episodes:
            self.tried = []
            return
        prompt = self._prompt(episodes) if self.settings.prompt_select != "none" else None
        if self.settings.context in ("carried", "tried"):
            self.carried = self._carried(episodes)
            self.tried.append(self.carried)
        if prompt is not None:
            with self._autocast():
                self.prompt = self.policy.encode_prompt(prompt)

    @torch.inference_mode()
    def start(self, observations):
        """Begin B episodes: observations (B, d_s)."""
        target = torch.as_tensor(0.0 if self.target is None else self.target, dtype=torch.float32, device=self.device)
        self.target_row = target.expand(len(observations))
        self.returns_to_go, self.observations = Steps(self.target_row), Steps(self._tensor(observations))
        self.actions = Steps(torch.zeros_like(self.policy.action_scale).expand(len(observations), -1))  # the last is to come
        reads = self.settings.context != "none" and self.carried is None
        self.running = RunningContexts(self.world_model, len(observations)) if reads else None
        self.contexts = Steps(self._context())
        self.begin = 0

    @torch.inference_mode()
    def forget(self):
        """Let the policy's history begin anew at the current step: its time is 0 again, its return-to-go the target.

        The context stays: what the steps so far told of the task. So steps of exploration, which no episode of the data has, are
        not in the history, and what follows looks like an episode of an agent that knows its task from the start (ours).
        """
        self.begin = len(self.observations) - 1
        self.returns_to_go[-1] = self.target_row

    @torch.inference_mode()
    def act(self):
        """Actions (B, d_a) for the current step, numpy."""
        steps = len(self.observations)
        first = max(self.begin, steps - self.history_length)
        history = {
            "returns_to_go": self.returns_to_go[first:],
            "observations": self.observations[first:],
            "contexts": self.contexts[first:],
            "actions": self.actions[first:],
            "timesteps": torch.arange(first - self.begin, steps - self.begin, device=self.device)[None],
        }
        with self._autocast():
            return self.policy.act(history, self.prompt).cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        """What the environment answered: actions as they were played (B, d_a), rewards (B,), next observations (B, d_s)."""
        actions, rewards = self._tensor(actions), self._tensor(rewards)
        if self.running:
            self.running.step(self.observations[-1], actions, rewards)
        self.actions[-1] = actions
        self.actions.append(torch.zeros_like(actions))
        self.observations.append(self._tensor(next_observations))
        self.returns_to_go.append(self.returns_to_go[-1] - rewards)
        self.contexts.append(self._context())

    def _context(self):
        if self.carried is not None:
            return self.carried
        return self.running.current if self.running else torch.zeros(len(self.target_row), CONTEXT_SIZE, device=self.device)

    def _tensor(self, values):
        return as_tensor(values, self.device)

    # -------------------------------------------------------------------------------------------------------- few-shot

    def _prompt(self, episodes):
        """Prompt of every row from its own episodes: dict of tensors (B, k, ...)."""
        generator = torch_generator(self.seed, "prompt", len(episodes) - 1)
        ranked = self._returns(episodes).argsort(1, descending=True)
        rows = torch.arange(len(ranked), device=self.device)
        choice = torch.randint(min(3, len(episodes)), (len(ranked),), generator=generator)
        chosen = ranked[rows, choice.to(self.device)]
        observations, actions, rewards = (
            torch.stack([self._tensor(episode[key]) for episode in episodes], 1)[rows, chosen]
            for key in ("observations", "actions", "rewards")
        )
        lengths = torch.stack([self._lengths(episode) for episode in episodes], 1)[rows, chosen]
        use_context = self.settings.context != "none"
        built = build_episodes(self.world_model, observations, actions, rewards, lengths, self.error_scale, use_context)
        return built.prompts(rows, self.prompt_length, self.world_model.horizon, self.settings.prompt_select, generator)

    def _carried(self, episodes):
        """The context that the next episode keeps, (B, 16)."""
        number = len(episodes)
        if self.settings.context == "carried":
            return torch.stack([self._last_context(episode) for episode in episodes]).mean(0)
        if number < self.warmup:
            rows = len(episodes[0]["rewards"])
            return self.known_contexts[(number - 1) % len(self.known_contexts)].expand(rows, -1)
        tried = torch.stack([self._last_context(episodes[0]), *self.tried], 1)
        return tried[torch.arange(len(tried), device=self.device), self._returns(episodes).argmax(1)]

    def _returns(self, episodes):
        """(B, N) returns of the N episodes."""
        return torch.stack([self._tensor(episode["rewards"]).sum(1) for episode in episodes], 1)

    def _last_context(self, episode):
        """z after the last step of an Episode, (B, 16)."""
        arrays = (self._tensor(episode[key]) for key in ("observations", "actions", "rewards"))
        contexts = episode_contexts(self.world_model, *arrays)
        return contexts[torch.arange(len(contexts), device=self.device), self._lengths(episode)]

    def _lengths(self, episode):
        """Steps of every row of an Episode until its end, (B,)."""
        return torch.as_tensor(episode["lengths"], device=self.device)


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
    if not world_model.horizon:  # the prompt is what even the episode's last z misses
        known = contexts[torch.arange(len(lengths), device=lengths.device), lengths][:, None].expand(-1, rewards.shape[1], -1)
    errors = prediction_errors(world_model, observations, actions, rewards, known, error_scale)
    if not use_context:
        contexts = torch.zeros_like(contexts)
    return EpisodeTensors(observations, actions, rewards, lengths, contexts, errors)


def training_errors(world_model, observations, actions, rewards, lengths, contexts, heads=(True, True)):
    """Root mean square of each head's error on the training data: what the errors that choose a prompt are divided by.

    heads: whether the reward head and the state head were trained; LEFT_OUT stands for one that was not.
    """
    inside = torch.arange(rewards.shape[1], device=rewards.device) < lengths[:, None]
    alone = ((1.0, math.inf), (math.inf, 1.0))
    errors = [prediction_errors(world_model, observations, actions, rewards, contexts, scale)[inside] for scale in alone]
    found = [float(values.square().mean().sqrt()) + 1e-12 for values in errors]
    return [value if trained else LEFT_OUT for value, trained in zip(found, heads, strict=True)]
