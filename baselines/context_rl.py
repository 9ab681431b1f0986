"""What the context-based methods share: FOCAL, CSRO, CORRO and UNICORN differ in how their encoder learns (CSRO explores, too),
and IDAQ adapts FOCAL's policy in its own way.

A context is a set of transitions (s, a, r, s') of one task. An encoder makes a code of each, their pool is z, and an
actor-critic acts on (s, z) (baselines/actor_critic.py). Training knows the training tasks' recorded data alone. On a test task
z comes from what the agent has lived there:

    zero-shot     the transitions of the running episode, at its first step the mean z of training
    few-shot(N)   all transitions of the N warm-up episodes, fixed during the evaluated one

The papers draw contexts of one size and take them from the test task's recorded data. Here a training context is the beginning
of a few episodes laid one behind the other, of any length, as an agent has it at some moment of its adaptation. Its transitions
are still those of the behaviour policies, not the agent's own: that shift of contexts is known to cost these methods most of
what they reach with recorded contexts, and nothing here takes it away.
"""

import dataclasses
import functools

import numpy as np
import torch
from torch import nn

from baselines.actor_critic import BRAC, IQL, Actor, ActorCriticSettings, mlp
from src.data.scales import clipped, scale_of
from src.evaluation.agent import as_tensor
from src.evaluation.method import Evaluation, RunSettings, TrainingData, method_parser, train_and_measure
from src.evaluation.shown import ShownProtocol
from src.models.reward_model import make_rewards
from src.models.steps import Steps
from src.run.command_line import parse_args, settings
from src.run.devices import keep_memory
from src.run.errors import UserError
from src.run.flags import positive_float, positive_int, proper_fraction
from src.run.loop import schedule_factor
from src.run.seeding import derive, torch_generator
from src.run.settings import pick, setting

MEMORY_OF_PRIOR = 0.99  # of the running mean of z


@dataclasses.dataclass(frozen=True)
class ContextSettings:
    """contexts"""

    steps: int = setting(200_000, "updates, each one step of every network", positive_int)
    tasks_per_step: int = setting(16, "tasks of an update, drawn with replacement, each with a context of its own", positive_int)
    batch_size: int = setting(256, "transitions of each of these tasks for the actor-critic", positive_int)
    context_size: int = setting(256, "most transitions of a context in training; of a longer one so many are drawn", positive_int)
    context_episodes: int = setting(3, "most episodes that a context in training goes through", positive_int)
    prior_share: float = setting(
        0.05, "share of contexts that are empty for the actor-critic, z the mean of training", proper_fraction
    )  # fmt: skip
    relabel: bool = setting(False, "half of what is drawn is other tasks', paid by a reward learned from the data (ours)")
    true_rewards: bool = setting(False, "relabel by the environment's reward function, not by a learned one (an ablation)")
    encoder_learning_rate: float = setting(3e-4, "of Adam, for the encoder", positive_float)
    contexts: str = setting(
        "own", "warm-up episodes; recorded: the test tasks' data, as published (--eval_only)", choices=["own", "recorded"]
    )


class Normaliser(nn.Module):
    """Statistics of the training tasks' data (src/data/scales.py), with which every network is fed. Saved with the policy."""

    def __init__(self, statistics):
        super().__init__()
        for name, value in statistics.items():
            self.register_buffer(name, value)

    @classmethod
    def of(cls, episodes, space):
        """Of Trajectories and the Box of the actions."""
        statistics = {"action_centre": torch.as_tensor((space.high + space.low) / 2).float()}
        statistics["action_range"] = torch.as_tensor((space.high - space.low) / 2).float()
        inside = episodes.inside
        before, after = episodes.observations[:, :-1][inside], episodes.observations[:, 1:][inside]
        for name, values in (
            ("observation", np.concatenate([before, after])),
            ("change", after - before),
            ("reward", episodes.rewards[inside][:, None]),
        ):
            for part, value in zip(("mean", "std", "bound"), scale_of(torch.from_numpy(values)), strict=True):
                statistics[f"{name}_{part}"] = value
        return cls(statistics)

    @classmethod
    def blank(cls, sizes):
        """For statistics that are loaded. sizes: (d_s, d_a)."""
        counts = {"observation": sizes[0], "change": sizes[0], "reward": 1}
        statistics = {f"{name}_{part}": torch.ones(count) for name, count in counts.items() for part in ("mean", "std", "bound")}
        return cls(statistics | {f"action_{part}": torch.ones(sizes[1]) for part in ("centre", "range")})

    def observations(self, observations):
        """Standardised."""
        return clipped((observations - self.observation_mean) / self.observation_std, self.observation_bound)

    def actions(self, actions):
        """From the environment's bounds to [-1, 1]."""
        return (actions - self.action_centre) / self.action_range

    def played(self, actions):
        """From [-1, 1] to the environment's bounds."""
        return self.action_centre + self.action_range * actions

    def features(self, observations, actions, rewards, next_observations):
        """(s, a, r, s' − s) of transitions, in units of their deviations: (..., d_s), (..., d_a), (...,), (..., d_s) -> (...,
        2·d_s + d_a + 1)."""
        rewards = clipped((rewards[..., None] - self.reward_mean) / self.reward_std, self.reward_bound)
        changes = clipped((next_observations - observations - self.change_mean) / self.change_std, self.change_bound)
        return torch.cat([self.observations(observations), self.actions(actions), rewards, changes], -1)


class ContextData:
    """Draws contexts and transitions from episodes of the training tasks.

    Args:
        episodes: Trajectories of the training tasks. normaliser: of these. generator: torch.Generator (CPU).
        relabel: None, or Rewards (src/data/relabel.py) by which half of what is drawn are other tasks' transitions, paid as the
            task would pay.
    Attributes: tasks (K,): their ids; in what follows a task is its place in it.
    """

    def __init__(self, episodes, normaliser, settings, device, generator, relabel=None):
        order = np.argsort(episodes.task_ids, kind="stable")
        episodes = episodes.take(order)
        inside = episodes.inside
        arrays = {
            "observations": episodes.observations[:, :-1][inside],
            "actions": episodes.actions[inside],
            "rewards": episodes.rewards[inside],
            "next_observations": episodes.observations[:, 1:][inside],
            "terminated": episodes.infos.get("terminated", np.zeros_like(episodes.rewards))[inside].astype(np.float32),
        }
        self.arrays = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        self.infos = {key: values[inside] for key, values in episodes.infos.items()}
        self.normaliser, self.settings, self.device, self.generator = normaliser, settings, device, generator
        self.relabel = relabel
        self.task_ids = np.repeat(episodes.task_ids, episodes.lengths)  # (N,) whose each row is
        self.tasks, counts = np.unique(episodes.task_ids, return_counts=True)
        self.count = torch.from_numpy(counts)  # (K,) episodes of each task
        self.first = self.count.cumsum(0) - self.count  # (K,) the first of them
        self.length = torch.from_numpy(episodes.lengths)  # (E,) steps of each episode
        self.row = self.length.cumsum(0) - self.length  # (E,) row of its first step
        ends = self.row + self.length
        self.task_row = self.row[self.first]  # (K,) row of the task's first step
        self.task_size = ends[self.first + self.count - 1] - self.task_row  # (K,) steps of each task

    def _below(self, bounds, *shape):
        """Uniform integers in [0, bounds), bounds (B,) or (B, ...) broadcast to (B, *shape)."""
        bounds = bounds.reshape(*bounds.shape, *[1] * (1 + len(shape) - bounds.dim()))
        drawn = torch.rand(bounds.shape[0], *shape, generator=self.generator, dtype=torch.float64)
        return (drawn * bounds).long()

    def draw_tasks(self):
        """(B,) tasks of an update, with replacement: a task that comes twice is what metric losses bring together."""
        return torch.randint(len(self.tasks), (self.settings.tasks_per_step,), generator=self.generator)

    def contexts(self, tasks):
        """A context for each of `tasks` (B,): features (B, n, f), and mask (B, n) of the places that hold a transition.

        The first m transitions of `context_episodes` episodes of the task, drawn at random and laid one behind the other; m is
        uniform between 1 and all of them, and where it is above `context_size` so many are drawn among the m.
        """
        rows, used = self._histories(tasks)
        size = min(self.settings.context_size, int(used.max()))
        places, drawn = torch.arange(size).expand(len(tasks), -1), self._below(used, size)
        mask = places < used[:, None]
        places = torch.where(used[:, None] > self.settings.context_size, drawn, places * mask)
        return self.features(rows.gather(1, places), tasks), mask.to(self.device)

    def histories(self, tasks):
        """As `contexts`, but nothing is drawn: the first `context_size` transitions at most. Also a batch as
        `transitions` gives, (B, n, ...), of the very transitions of the history."""
        rows, used = self._histories(tasks)
        rows = rows[:, : min(self.settings.context_size, int(used.max()))]
        mask = torch.arange(rows.shape[1]) < used[:, None]
        return self.features(rows, tasks), mask.to(self.device), self._batch(rows, tasks)

    def _histories(self, tasks):
        """Rows (B, n) of `context_episodes` episodes of each task, one behind the other, and how many of them are used (B,)."""
        s, sources = self.settings, self._sources(tasks)
        chosen = self.first[sources][:, None] + self._below(self.count[sources], s.context_episodes)  # (B, c)
        lengths = self.length[chosen]
        ends = lengths.cumsum(1)
        places = torch.arange(int(ends.max())).expand(len(tasks), -1)
        places = torch.minimum(places, ends[:, -1:] - 1)
        episode = (places[..., None] >= ends[:, None]).sum(-1)  # (B, n)
        return (self.row[chosen] - (ends - lengths)).gather(1, episode) + places, 1 + self._below(ends[:, -1])

    def _sources(self, tasks):
        """Whose transitions stand for `tasks` (B,): their own, or with `relabel` in half of the cases those of any task."""
        if self.relabel is None:
            return tasks
        any_task = torch.randint(len(self.tasks), tasks.shape, generator=self.generator)
        return torch.where(torch.rand(tasks.shape, generator=self.generator) < 0.5, any_task, tasks)

    def _rewards(self, rows, tasks):
        """What `tasks` (B,) paid for the transitions `rows` (B, n), or with `relabel` would pay."""
        rewards = self.arrays["rewards"][rows.to(self.device)]
        if self.relabel is None:
            return rewards
        ids = np.broadcast_to(self.tasks[tasks][:, None], rows.shape)
        moved = self.task_ids[rows] != ids
        chosen = rows.numpy()[moved]
        arrays = [self.arrays[name].cpu().numpy()[chosen] for name in ("observations", "actions", "next_observations")]
        infos = {key: values[chosen] for key, values in self.infos.items()}
        paid = torch.from_numpy(np.asarray(self.relabel(*arrays, infos, ids[moved]), np.float32))
        rewards[torch.from_numpy(moved).to(self.device)] = paid.to(self.device)
        return rewards

    def rows(self, tasks, count):
        """Rows of `count` transitions of each of `tasks` (B,), drawn uniformly: (B, count)."""
        return self.task_row[tasks][:, None] + self._below(self.task_size[tasks], count)

    def features(self, rows, tasks):
        """The encoder's input for transitions by their rows (B, n), paid by `tasks` (B,): (B, n, f)."""
        rewards, rows = self._rewards(rows, tasks), rows.to(self.device)
        observations, actions, following = (self.arrays[name][rows] for name in ("observations", "actions", "next_observations"))
        return self.normaliser.features(observations, actions, rewards, following)

    def transitions(self, tasks):
        """`batch_size` transitions of each of `tasks` (B,), normalised: what an actor-critic learns from (`actor_critic`)."""
        return self._batch(self.rows(self._sources(tasks), self.settings.batch_size), tasks)

    def _batch(self, rows, tasks):
        rewards, rows, n = self._rewards(rows, tasks), rows.to(self.device), self.normaliser
        batch = {name: array[rows] for name, array in self.arrays.items()}
        return batch | {
            "observations": n.observations(batch["observations"]),
            "next_observations": n.observations(batch["next_observations"]),
            "actions": n.actions(batch["actions"]),
            "rewards": rewards / n.reward_std,
        }


class MeanPool(nn.Module):
    """z: the mean of the codes of a context."""

    def forward(self, codes, mask):
        """codes (B, n, k), mask (B, n) with at least one place each -> (B, k)."""
        weights = mask.to(codes.dtype)
        return (codes * weights[..., None]).sum(-2) / weights.sum(-1, keepdim=True)


class Encoder(nn.Module):
    """Codes of transitions by one MLP, and their pool, which does not know their order.

    Args:
        sizes: (d_s, d_a) of the transitions. size: k of z. final: what squashes a code. pool: module (codes, mask) -> z.
    """

    def __init__(self, sizes, size, width, layers, final=torch.tanh, pool=None):
        super().__init__()
        self.body, self.final, self.size = mlp(2 * sizes[0] + sizes[1] + 1, width, layers, size), final, size
        self.pool = pool or MeanPool()

    @classmethod
    def from_settings(cls, sizes, settings):
        """The untrained encoder of settings with code_size, encoder_width and encoder_layers."""
        return cls(sizes, settings.code_size, settings.encoder_width, settings.encoder_layers)

    def forward(self, features):
        """(..., f) -> (..., k)."""
        return self.final(self.body(features))


class ContextPolicy(nn.Module):
    """All that acts, and all that is kept: normaliser, encoder, actor, and `prior`, the mean z of training."""

    def __init__(self, normaliser, encoder, actor):
        super().__init__()
        self.normaliser, self.encoder, self.actor = normaliser, encoder, actor
        self.register_buffer("prior", torch.zeros(encoder.size))


class ContextAgent:
    """A ContextPolicy as an Agent (src/evaluation/agent.py): the mean action for z, see the head of this file."""

    def __init__(self, policy, device):
        self.policy, self.device = policy, device

    def _tensor(self, array):
        return as_tensor(array, self.device)

    @torch.inference_mode()
    def adapt(self, episodes):
        """z from all transitions of `episodes`, up to each row's end; without any, from the running episode."""
        self.pool = bool(episodes)
        if self.pool:
            self.z = self.infer(episodes)

    def hold(self, z):
        """Act on z (B, k) until `adapt` is called again."""
        self.pool, self.z = True, z

    @torch.inference_mode()
    def infer(self, episodes, accepted=None, fallback=None):
        """z (B, k) from the transitions of `episodes`, in each row of those that are `accepted` (B, n); where none is, `fallback`
        (B, k)."""
        features, masks = zip(*map(self.features, episodes), strict=True)
        if accepted is not None:
            masks = [mask & accepted[:, number, None] for number, mask in enumerate(masks)]
        mask, codes = torch.cat(masks, 1), torch.cat([self.policy.encoder(part) for part in features], 1)
        known = mask.any(1, keepdim=True)
        z = self.policy.encoder.pool(codes, mask | ~known)
        return z if fallback is None else torch.where(known, z, fallback)

    def features(self, episode):
        """The encoder's input (B, T, f) for the transitions of an Episode, and mask (B, T) up to each row's end."""
        mask = np.arange(episode["rewards"].shape[1]) < episode["lengths"][:, None]
        observations = episode["observations"]
        parts = observations[:, :-1], episode["actions"], episode["rewards"], observations[:, 1:]
        return self.policy.normaliser.features(*map(self._tensor, parts)), torch.from_numpy(mask).to(self.device)

    def _codes(self, *transitions):
        return self.policy.encoder(self.policy.normaliser.features(*map(self._tensor, transitions)))

    def start(self, observations):
        self.observations = observations
        if not self.pool:
            self.codes, self.z = None, self.policy.prior.expand(len(observations), -1)

    @torch.inference_mode()
    def act(self):
        normaliser = self.policy.normaliser
        actions = self.policy.actor(normaliser.observations(self._tensor(self.observations)), self.z).centre()
        return normaliser.played(actions).cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        if not self.pool:
            code = self._codes(self.observations, actions, rewards, next_observations)
            if self.codes:
                self.codes.append(code)
            else:
                self.codes = Steps(code)
            codes = self.codes[:]
            self.z = self.policy.encoder.pool(codes, torch.ones(codes.shape[:2], dtype=torch.bool, device=self.device))
        self.observations = next_observations


class ContextRL:
    """A Method (src/evaluation/method.py): in every update the encoder takes a step of its own, then the actor-critic, z
    detached.

    Args:
        data: TrainingData. rewards: see `relabel` of ContextData.
        settings: dict of "contexts" (ContextSettings), "rl" (ActorCriticSettings) and "learner".
        learner: class (sizes (d_s, d_a), its settings, learning rate, ContextData) with `encoder`, `optimizers`, `parts`, and
            `update(tasks, features, mask)`, which takes its step and returns (dict of losses, codes of the transitions,
            detached); `make_encoder(sizes, settings)` gives the untrained encoder. It may have `extended(agent, settings,
            known, warmup, space, seed)`, what the Agent does more than act on z, with `kept()`, the {name: tensor} of `known`;
            `variants` and `measured`: names of settings that make results of their own, with weights of their own or with the
            same; the latter of few-shot results, since a first episode knows nothing of them.
    """

    def __init__(self, data, settings, learner, device, seed, rewards=None):
        self.settings, self.rl, self.device, self.seed = settings["contexts"], settings["rl"], device, seed
        self.space = data.environment.action_space
        normaliser = Normaliser.of(data.episodes, self.space).to(device)
        self.generator = torch_generator(seed, "batches")
        self.data = ContextData(data.episodes, normaliser, self.settings, device, self.generator, rewards)
        sizes = data.episodes.observations.shape[-1], data.episodes.actions.shape[-1]
        torch.manual_seed(derive(seed, "weights"))
        self.learner = learner(sizes, settings["learner"], self.settings.encoder_learning_rate, self.data)
        encoder = self.learner.encoder
        actor = Actor(sizes[0], encoder.size, sizes[1], self.rl).to(device)
        self.policy = ContextPolicy(normaliser, encoder, actor).to(device)
        algorithm = {"iql": IQL, "brac": BRAC}[self.rl.rl]
        shared = list(encoder.pool.parameters())
        self.actor_critic = algorithm(actor, (*sizes, encoder.size), self.rl, device, shared, self.generator)
        self.parts = {"model": self.policy, "batches": self.generator, **self.learner.parts, **self.actor_critic.parts}
        self.weights = {"model": self.policy}
        optimizers = (*self.learner.optimizers, *self.actor_critic.optimizers)
        self.rates = [(optimizer, optimizer.param_groups[0]["lr"]) for optimizer in optimizers]

    def update(self, step):
        """Update number `step` (from 1) -> dict of detached losses, "loss" their sum."""
        factor = schedule_factor(step - 1, self.settings.steps, 0, self.rl.lr_schedule)
        for optimizer, rate in self.rates:
            optimizer.param_groups[0]["lr"] = rate * factor
        tasks = self.data.draw_tasks()
        features, mask = self.data.contexts(tasks)
        losses, codes = self.learner.update(tasks, features, mask)
        z = self.policy.encoder.pool(codes.detach(), mask)
        self.policy.prior.lerp_(z.detach().mean(0), 1 - min(MEMORY_OF_PRIOR, (step - 1) / step))
        empty = torch.rand(len(z), 1, generator=self.generator).to(self.device) < self.settings.prior_share
        z = torch.where(empty, self.policy.prior, z)
        losses |= self.actor_critic.update(lambda: self.data.transitions(tasks), z)
        return losses | {"loss": sum(losses.values())}

    def agent(self, warmup):
        """The current policy as a new Agent that is to live `warmup` episodes before the evaluated one."""
        known, settings = self.known, self.learner.settings
        return context_agent(self.policy, type(self.learner), settings, known, self.space, self.seed, warmup)

    @property
    def known(self):
        """{name: tensor}, what acting needs beside the policy."""
        return self.learner.kept() if hasattr(self.learner, "kept") else {}


def context_agent(policy, learner, settings, known, space, seed, warmup):
    """The Agent of a ContextPolicy and a class of learner."""
    agent, more = ContextAgent(policy, policy.prior.device), getattr(learner, "extended", None)
    return more(agent, settings, known, warmup, space, seed) if more else agent


def restore_context_rl(saved, learner, learner_settings):
    """Saved -> (ContextPolicy, function warmup -> Agent)."""
    rl, settings = saved.pick(ActorCriticSettings, learner_settings)
    encoder = learner.make_encoder(saved.sizes, settings)
    actor = Actor(saved.sizes[0], encoder.size, saved.sizes[1], rl)
    policy = saved.filled(ContextPolicy(Normaliser.blank(saved.sizes), encoder, actor))
    known = {name: saved.tensor(name) for name in saved.known}
    return policy, functools.partial(context_agent, policy, learner, settings, known, saved.space, saved.seed)


def read_flags(name, docstring, learner_settings, argv=None, notes=True):
    """What a method of this kind is told on the command line; see `run_context_rl`. notes: see `parse_args`."""
    return parse_args(
        method_parser(docstring, ContextSettings, learner_settings, ActorCriticSettings), f"baselines.{name}", argv, notes
    )


def run_context_rl(name, docstring, learner, learner_settings, argv=None):
    """The main function of a method of this kind: flags, training, results. Args as `ContextRL`; name: of its file."""
    args = read_flags(name, docstring, learner_settings, argv)
    keep_memory()
    chosen = {
        "contexts": pick(ContextSettings, args),
        "rl": pick(ActorCriticSettings, args),
        "learner": pick(learner_settings, args),
    }

    run, evaluation, usual = pick(RunSettings, args), pick(Evaluation, args), learner_settings()

    def changed(names):
        return {key: getattr(args, key) for key in names if getattr(args, key) != getattr(usual, key)}

    variants = changed(getattr(learner, "variants", ()))
    rewards, more = prepare(run, evaluation, chosen["contexts"], chosen["rl"], variants)
    measured = getattr(learner, "measured", ())  # these have the weights in common, and the first episode
    few_shot = changed(measured)
    more |= {"volatile": (*more["volatile"], *measured), "few_shot_variant": more.get("variant", {}) | few_shot}
    if evaluation.eval_only and few_shot:
        more.setdefault("regimes", {"few_shot": evaluation.warmup_episodes})

    def build(data):
        return ContextRL(data, chosen, learner, args.device, args.seed, rewards)

    return train_and_measure(name, run, evaluation, settings(args), args.steps, build, **more)


def prepare(run, evaluation, contexts, rl, variants=None):
    """Rewards where `--relabel` asks for them, and further arguments of `train_and_measure`: the data, and what the settings of
    these methods (ContextSettings, ActorCriticSettings) change in evaluation and results. variants: {setting: value} that differ
    from what the method usually trains with.

    Raises UserError where recorded contexts are asked for in training, or a test task has none, or flags contradict each other.
    """
    if contexts.true_rewards and not contexts.relabel:
        raise UserError("--true_rewards has no effect without --relabel: give both")
    if contexts.contexts == "recorded" and not evaluation.eval_only:
        raise UserError("--contexts recorded measures a trained policy: train without it, then add --eval_only")
    data = TrainingData(run)
    named = {"rl": rl.rl} if rl.rl != "iql" else {}
    named |= {key: True for key in ("relabel", "true_rewards") if getattr(contexts, key)}
    named |= variants or {}
    names = (key if value is True else f"{key}_{value}" for key, value in named.items())
    more = {"variant": named, "folder": "-".join(names)} if named else {}  # results and weights of their own
    more |= {"data": data, "volatile": ("contexts",)}
    rewards = make_rewards(run, data, contexts.true_rewards) if contexts.relabel else None
    if rewards:
        more |= {"privileges": rewards.privileges, "made_from": rewards.made_from, "facts": lambda method: rewards.facts}
    if contexts.contexts == "recorded":
        protocol = ShownProtocol(run, evaluation, data.test_tasks, "recorded_context", data.dataset, evaluation.warmup_episodes)
        more |= {"protocol": protocol, "regimes": {"few_shot": 0}}
    return rewards, more
