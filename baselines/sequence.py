"""What the sequence models share: their settings, training by cloning, and acting by a window of the running episode.

The network is Meta-DT's without the context z (src/models/meta_dt.py): tokens condition, s, a per step, in a GPT-2 stack. The
condition is the return-to-go; another method puts a statistic of the future or the last reward in its place. Windows are
Meta-DT's too (src/data/windows.py), so that methods differ by what they condition on and by nothing else.
"""

import dataclasses

import numpy as np
import torch

from src.data.trajectories import observation_statistics
from src.data.windows import BatchSampler, EpisodeTensors
from src.evaluation.agent import as_tensor
from src.evaluation.method import Evaluation, RunSettings, method_parser, train_and_measure
from src.evaluation.rollout import returns
from src.models.meta_dt import MetaDT, action_loss
from src.models.steps import Steps
from src.run.command_line import parse_args, settings
from src.run.devices import keep_memory
from src.run.errors import UserError
from src.run.flags import positive_float, positive_int, proper_fraction
from src.run.seeding import derive, torch_generator
from src.run.settings import pick, setting


@dataclasses.dataclass(frozen=True)
class Sequence:
    """model"""

    history_length: int = setting(20, "K: steps of history", positive_int)
    width: int = setting(128, "of the transformer", positive_int)
    layers: int = setting(3, "transformer blocks", positive_int)
    heads: int = setting(1, "attention heads", positive_int)
    dropout: float = setting(0.1, "on inputs, attention weights and residual branches", proper_fraction)


@dataclasses.dataclass(frozen=True)
class Windowed(Sequence):
    """model"""

    full_windows: bool = setting(False, "draw only windows of K steps (ours)")


@dataclasses.dataclass(frozen=True)
class Returns:
    """returns-to-go"""

    return_scale: float = setting(500.0, "c: returns-to-go are divided by it", positive_float)


def run_method(name, docstring, build, kinds, argv=None, options=None):
    """The main function of a method: its flags, training, results.

    Args:
        kinds: settings classes, Sequence first and Optimisation last, whose flags the method has.
        build: function (TrainingData, RunSettings, one object of each of `kinds`) -> Method.
        options: function (RunSettings, Evaluation, those objects) -> further arguments of `train_and_measure`.
    """
    args = parse_args(method_parser(docstring, *kinds), f"baselines.{name}", argv)
    run, evaluation, *chosen = (pick(kind, args) for kind in (RunSettings, Evaluation, *kinds))
    if chosen[0].width % chosen[0].heads:
        raise UserError(f"--width {chosen[0].width} must be a multiple of --heads {chosen[0].heads}")
    keep_memory()
    more = options(run, evaluation, *chosen) if options else {}
    return train_and_measure(
        name, run, evaluation, settings(args), chosen[-1].steps, lambda data: build(data, run, *chosen), **more
    )


# --------------------------------------------------------------------------------------------------------------- training


def episode_tensors(episodes, device):
    """Trajectories, or a dict of arrays -> EpisodeTensors without contexts."""
    names = ("observations", "actions", "rewards", "lengths")
    arrays = (episodes[name] if isinstance(episodes, dict) else getattr(episodes, name) for name in names)
    return EpisodeTensors(*(torch.as_tensor(array, device=device) for array in arrays))


def make_policy(data, run, model, return_scale=1.0, max_steps=None, **options):
    """MetaDT without z; its first weights depend on the seed alone.

    Args: data: TrainingData. run: RunSettings. model: Sequence. return_scale: of returns-to-go.
        max_steps: entries of the time table (default: T).
        options: see MetaDT.
    """
    torch.manual_seed(derive(run.seed, "policy"))
    sizes = data.episodes.observations.shape[-1], data.episodes.actions.shape[-1]
    policy = blank_policy(sizes, max_steps or run.env.max_episode_steps, model, return_scale, **options)
    policy.set_normaliser(*(torch.from_numpy(values) for values in observation_statistics(data.episodes)))
    return policy.to(run.device)


def blank_policy(sizes, max_steps, model, return_scale=1.0, **options):
    """As `make_policy`, untrained and without a normaliser. sizes: (d_s, d_a)."""
    shape = (*sizes, max_steps, return_scale, model.width, model.layers, model.heads, model.dropout)
    return MetaDT(*shape, **{"context": False, "prompted": False} | options)


def make_sampler(data, run, model, prompt_length=1, prompt_segment="last"):
    """BatchSampler of the windows of the training tasks, as Meta-DT's: every (episode, start) alike, padded on the left."""
    tasks = torch.from_numpy(data.episodes.task_ids).to(run.device)
    episodes = episode_tensors(data.episodes, run.device)
    return BatchSampler(episodes, tasks, model.history_length, prompt_length, 1, prompt_segment, model.full_windows)


def cloning_loss(policy, history, prompt=None):
    """Mean squared error of the actions over unpadded steps and action dimensions, unscaled (Decision Transformer)."""
    return action_loss(policy(history, prompt), history["actions"], history["imitated"], policy.action_scale)


class Cloning:
    """A Method (src/evaluation/method.py) that minimises one loss by AdamW.

    Args:
        model: module with all that is trained. seed: of the run.
        optimisation: Optimisation. loss: function of a torch.Generator -> scalar tensor.
        make_agent: function without arguments -> Agent of the model.
        known: {name: tensor}, what the agent needs of the training data beside the weights, see src/evaluation/saved.py.
    """

    def __init__(self, model, seed, optimisation, loss, make_agent, known):
        self.known = known
        self.model, self.optimisation, self.loss, self.make_agent = model, optimisation, loss, make_agent
        self.optimizer = optimisation.optimizer(model.parameters())
        self.generator = torch_generator(seed, "batches")
        self.parts = {"model": model, "optimizer": self.optimizer, "generator": self.generator}
        self.weights = {"model": model}

    def update(self, step):
        """Gradient step `step`, from 1 on -> {"loss"}."""
        self.model.train()
        self.optimisation.schedule(self.optimizer, step)
        loss = self.loss(self.generator)
        self.optimisation.descend(self.optimizer, self.model.parameters(), loss)
        return {"loss": loss.detach()}

    def agent(self, warmup):
        """The frozen policy; it acts alike, however many episodes it is to live."""
        self.model.eval()
        return self.make_agent()


# ----------------------------------------------------------------------------------------------------------------- acting


def target_of(saved):
    """The return that a Saved policy asks for."""
    return saved.known["target"].item()


def target_return(episodes):
    """The return that is asked for on every task: the mean over the training tasks of the best return in each one's data."""
    return float(np.mean([episodes.returns[episodes.task_ids == task].max() for task in np.unique(episodes.task_ids)]))


def best_episode(episodes, device):
    """EpisodeTensors whose row i is the episode of the best return among `episodes` (list of Episode dicts) of row i."""
    best = np.stack([returns(episode) for episode in episodes]).argmax(0)
    names = ("observations", "actions", "rewards", "lengths")
    chosen = {name: np.stack([episode[name] for episode in episodes])[best, np.arange(len(best))] for name in names}
    return episode_tensors(chosen, device)


class WindowAgent:
    """A frozen policy that acts in B episodes at once by the last K steps of each.

    Args:
        policy: MetaDT without z. history_length: K. target: return that is asked for.
        make_prompt: function of the episodes lived so far -> prompt as `MetaDT.forward` takes it; None: there are no prompts.
    """

    def __init__(self, policy, history_length, target, make_prompt=None):
        self.policy, self.history_length, self.target, self.make_prompt = policy, history_length, target, make_prompt
        self.device = policy.observation_mean.device

    @torch.inference_mode()
    def adapt(self, episodes):
        """What the rows have lived on their tasks so far, oldest first."""
        prompted = self.make_prompt is not None and episodes
        self.prompt = self.policy.encode_prompt(self.make_prompt(episodes)) if prompted else None

    def start(self, observations):
        """Begin B episodes: observations (B, d_s)."""
        self.observations = Steps(as_tensor(observations, self.device))
        self.actions = Steps(torch.zeros_like(self.policy.action_scale).expand(len(observations), -1))  # the last is to come
        self.rewards = Steps(torch.zeros(len(observations), device=self.device))  # likewise
        self.returns_to_go = Steps(torch.full((len(observations),), self.target, device=self.device))

    @torch.inference_mode()
    def act(self):
        """Actions (B, d_a) of the current step."""
        first = max(0, len(self.observations) - self.history_length)
        history = {
            "observations": self.observations[first:],
            "actions": self.actions[first:],
            "timesteps": torch.arange(first, len(self.observations), device=self.device)[None],
        }
        return self.policy.act(history | self.conditions(first), self.prompt).cpu().numpy()

    def conditions(self, first):
        """What the steps from `first` to the current one are conditioned on."""
        return {"returns_to_go": self.returns_to_go[first:]}

    def observe(self, actions, rewards, next_observations):
        """What the environment answered: (B, d_a) as they were played, (B,), (B, d_s)."""
        actions, rewards = as_tensor(actions, self.device), as_tensor(rewards, self.device)
        for steps, played in ((self.actions, actions), (self.rewards, rewards)):
            steps[-1] = played
            steps.append(torch.zeros_like(played))
        self.observations.append(as_tensor(next_observations, self.device))
        self.returns_to_go.append(self.returns_to_go[-1] - rewards)
