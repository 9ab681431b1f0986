"""Both phases: gradient steps on a trajectory buffer and, online, one roll-out before each round of them."""

import copy
import dataclasses
from functools import partial

import numpy as np
import torch

from baselines.online_dt.lamb import Lamb
from baselines.online_dt.policy import Agent, ModelSettings, Policy
from baselines.online_dt.replay import delayed
from src.data.qualities import data_name
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import evaluate
from src.evaluation.method import RunSettings
from src.evaluation.rollout import returns, rollout
from src.models.heads import ActionDistribution, Temperature
from src.run.errors import require_finite
from src.run.flags import fraction, nonnegative_float, positive_float, positive_int, proper_fraction, real
from src.run.seeding import derive, numpy_generator, torch_generator
from src.run.settings import setting

GRADIENT_CLIP = 0.25
INITIAL_TEMPERATURE = 0.1
LOG_INTERVAL = 100  # gradient steps
EXPLORATION_NOISE = 0.1  # of a deterministic policy that explores: Gaussian, as a share of the half range of the actions


@dataclasses.dataclass(frozen=True)
class Data:
    """data"""

    dataset: str = setting("medium", "kind of data, see get_datasets.py", data_name, flags=("--data_type", "--data_quality"))
    mode: str = setting("normal", "delayed: all reward at the last step", choices=["normal", "delayed"])
    pct_traj: float = setting(1.0, "pre-train on the best, up to this share of time steps", fraction)


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """training"""

    max_iters: int = setting(10, "iterations; online: rounds of exploration", positive_int)
    num_steps_per_iter: int = setting(10_000, "gradient steps of an iteration", positive_int)
    batch_size: int = setting(64, "windows per gradient step", positive_int)
    optimizer: str = setting("adamw", "lamb: the official code's", choices=["adamw", "lamb"])
    learning_rate: float = setting(1e-4, "after the warm-up", positive_float, flags=("-lr",))
    weight_decay: float = setting(1e-4, "of the optimiser", nonnegative_float, flags=("-wd",))
    warmup_steps: int = setting(10_000, "linear warm-up; both phases share one", positive_int)
    ema_decay: float = setting(0.0, "what acts is this moving average of the weights (ours; 0: none)", proper_fraction)


@dataclasses.dataclass(frozen=True)
class Entropy:
    """entropy (with --stochastic)"""

    use_entropy: bool | None = setting(None, "entropy bonus (default: online, or with --target_entropy)", bool)
    target_entropy: bool = setting(False, "learn the temperature: entropy at minus the number of actions")
    init_temperature: float | None = setting(
        None, "weight of the entropy bonus at the start (default: 0.1; online: where the pre-training left it)", positive_float
    )
    temperature_learning_rate: float = setting(1e-4, "of Adam; a shorter schedule wants a larger one", positive_float)
    approximate_entropy_samples: int = setting(1000, "draws per time step that estimate the entropy", positive_int)


@dataclasses.dataclass(frozen=True)
class Online:
    """online phase"""

    online_training: bool = setting(False, "fine-tune a pre-trained model online")
    pretrained_model: str | None = setting(
        None, "folder of the model (default: where the pre-training command wrote it); also of --eval_only"
    )
    online_buffer_size: int = setting(1000, "trajectories; at first the best offline ones", positive_int)
    keep_best: bool = setting(False, "a full buffer gives up its lowest return, not its oldest (ours)")
    num_online_rollouts: int = setting(1, "episodes played per round", positive_int)
    online_rtg: float | None = setting(
        None, "return asked for when exploring (default: the model's, that of the settings file, else twice --eval_rtg)", real
    )
    relabel: bool = setting(True, "train on the returns achieved, not on those asked for")
    exploration_std: float = setting(
        1.0, "factor on the standard deviation of a stochastic policy when it explores (ours; 1: its own samples)", positive_float
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """evaluation"""

    eval_only: bool = setting(False, "evaluate --pretrained_model, train nothing")
    eval_rtg: float | None = setting(
        None, "return asked for when evaluating (default: the model's, else the best of the data)", real
    )
    eval_context: int | None = setting(None, "time steps seen when acting (default: the model's, else K)", positive_int)
    eval_interval: int = setting(1, "iterations between two evaluations", positive_int)
    num_eval_episodes: int = setting(100, "episodes of an evaluation", positive_int)
    use_action_means: bool | None = setting(
        None, "evaluate the mean action (default: online only; --eval_only: as the model was evaluated); else sample", bool
    )
    log_to_wandb: bool = setting(False, "log to Weights & Biases too (pip install wandb)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    run: RunSettings
    data: Data
    model: ModelSettings
    optimisation: Optimisation
    entropy: Entropy
    online: Online
    evaluation: Evaluation


class Learner:
    """The objective of both phases: maximum likelihood of the actions, with an entropy bonus of learned weight λ.

        J(θ) = − mean log π(a_t | ...)              over the valid steps of the windows
        H(θ) = mean entropy of π                    over the same steps, estimated by samples
        θ minimises J − λ H, λ = exp(ν), and ν minimises exp(ν) (H − H_target), H_target = −d_a

    A deterministic policy minimises the mean squared error of the scaled actions.
    `average` is what acts: with --ema_decay the exponential moving average of the weights (ours; how long a robot stays on its
    feet changes from one gradient step to the next), else the trained policy itself.
    Args: policy: Policy. optimisation: Optimisation. entropy: Entropy.
    """

    def __init__(self, policy, optimisation, entropy, seed):
        self.policy, self.optimisation, self.entropy, self.seed, self.step = policy, optimisation, entropy, seed, 0
        self.average = copy.deepcopy(policy).requires_grad_(False) if optimisation.ema_decay else policy
        kind = {"adamw": partial(torch.optim.AdamW, fused=True), "lamb": Lamb}[optimisation.optimizer]
        self.optimizer = kind(policy.parameters(), lr=optimisation.learning_rate, weight_decay=optimisation.weight_decay)
        target = -float(len(policy.action_range)) if entropy.target_entropy else None
        initial = entropy.init_temperature or INITIAL_TEMPERATURE
        temperature = Temperature(initial, target, entropy.temperature_learning_rate)
        self.temperature = temperature.to(policy.action_range.device)

    def update(self, window):
        """One gradient step on a batch of windows; returns {"loss", "nll", "entropy", "temperature"} as far as they exist."""
        optimisation, entropy = self.optimisation, self.entropy
        for group in self.optimizer.param_groups:
            group["lr"] = optimisation.learning_rate * min((self.step + 1) / optimisation.warmup_steps, 1)
            group["weight_decay"] = optimisation.weight_decay  # a restored optimiser would bring that of its own phase
        torch.manual_seed(derive(self.seed, "dropout", self.step))  # dropout takes no generator
        self.policy.train()
        predicted, (targets, mask) = self.policy(window), self.policy.targets(window)
        values = {}
        if self.policy.stochastic:
            generator = torch.Generator(targets.device).manual_seed(derive(self.seed, "entropy", self.step))
            distribution = ActionDistribution(predicted.mean[mask], predicted.log_std[mask], predicted.squash)
            loss = values["nll"] = -distribution.log_prob(targets).mean()
            with torch.set_grad_enabled(entropy.use_entropy):  # without the term it is still logged
                samples = entropy.approximate_entropy_samples if entropy.use_entropy else 1
                values["entropy"] = distribution.entropy(samples, generator).mean()
            if entropy.use_entropy:
                values["temperature"] = self.temperature.value
                loss = loss - values["temperature"] * values["entropy"]
        else:
            loss = (predicted[mask] - targets).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        if entropy.use_entropy:
            self.temperature.update(values["entropy"])
        self.step += 1
        if optimisation.ema_decay:
            decay = min(optimisation.ema_decay, self.step / (self.step + 9))  # the first weights are soon forgotten
            for average, weight in zip(self.average.parameters(), self.policy.parameters(), strict=True):
                average.lerp_(weight.detach(), 1 - decay)
        return {name: float(value.detach()) for name, value in {"loss": loss, **values}.items()}

    PARTS = ("policy", "average", "optimizer", "temperature")

    def state_dict(self):
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return {"step": self.step, **parts}

    def load_state_dict(self, state):
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]


class Trainer:
    """A run of one phase. Whatever it draws depends on the seed and the number of the step or round alone, so that a run that was
    stopped anywhere continues to the same weights.

    Args:
        learner: Learner. buffer: TrajectoryBuffer. settings: Settings. normalise: function returns (n,) -> scores, or None.
    """

    def __init__(self, learner, buffer, settings, normalise):
        self.learner, self.buffer, self.settings, self.normalise = learner, buffer, settings, normalise
        self.environment_steps = 0
        self.episodes = {}  # row of the buffer -> trajectory collected online, which a resumed run must put back
        self.curve = {key: [] for key in ("gradient_steps", "environment_steps", "test_return", "exploration_return", "entropy",
                                          "temperature")}  # fmt: skip
        self.recent, self.means, self.explored, self.last = {}, {}, [], None
        self.run, self.online = settings.run, settings.online
        space = self.run.env.make().action_space
        self.bounds = space.low, space.high
        self.batch = make_batch(self.run.env, [0] * self.online.num_online_rollouts) if self.online.online_training else None

    def train(self, loop):
        """Train to the last step of the Loop; `explore` and evaluations are repeated where a stop signal ends them."""
        size = self.settings.optimisation.num_steps_per_iter
        for step in loop.steps():
            if self.online.online_training and (step - 1) % size == 0:
                with loop.measuring():
                    if step == 1:
                        loop.logger.log(self.learner.step, self.measure())  # the pre-trained level
                    loop.logger.log(self.learner.step, self.explore((step - 1) // size))
            self.update()
            if self.learner.step % LOG_INTERVAL == 0 or step % size == 0:
                self.means = {name: float(np.mean(values)) for name, values in self.recent.items()}
                loop.logger.log(self.learner.step, {f"train/{name}": value for name, value in self.means.items()})
                self.recent = {}
            if loop.due:
                with loop.measuring():
                    loop.logger.log(self.learner.step, self.measure())
        if self.curve["gradient_steps"][-1:] != [self.learner.step]:  # a longer run was killed and ends here now
            self.measure()
            loop.save()

    def update(self):
        """One gradient step."""
        model, generator = self.settings.model, torch_generator(self.run.seed, "batch", self.learner.step)
        window = self.buffer.draw(self.settings.optimisation.batch_size, model.K, generator, by_end=model.model_type == "bc")
        for name, value in self.learner.update(window).items():
            require_finite(value, f"the {name}")
            self.recent.setdefault(name, []).append(value)

    # -------------------------------------------------------------------------------------------------- the environment

    def explore(self, number):
        """Round `number` (from 0): roll the policy out, asking for the exploration return, and put the trajectories into the
        buffer. Returns numbers for the log."""
        online, names, delay = self.online, (self.run.seed, "explore", number), self.settings.data.mode == "delayed"
        policy = self.learner.policy  # not the average: the luck of the last weights differs from round to round
        generator = torch_generator(*names) if policy.stochastic else None
        low, high = self.bounds
        noise = None if policy.stochastic else EXPLORATION_NOISE * (high - low) / 2
        agent = Agent(
            policy, online.online_rtg, self.settings.evaluation.eval_context, generator, online.exploration_std, not delay, noise,
            numpy_generator(*names),
        )  # fmt: skip
        seeds = [derive(*names, "reset", row) % 2**31 for row in range(online.num_online_rollouts)]
        episodes = rollout(agent, self.batch, seeds, self.run.env.max_episode_steps)
        lengths = episodes["lengths"]
        asked = online.online_rtg - np.cumsum(episodes["rewards"], 1, dtype=np.float64) + episodes["rewards"]
        if delay:
            episodes["rewards"], asked = delayed(episodes["rewards"], lengths), np.full_like(asked, online.online_rtg)
        for row, length in enumerate(lengths):
            episode = {key: torch.from_numpy(episodes[key][row, :length].copy()) for key in ("actions", "rewards")}
            episode["observations"] = torch.from_numpy(episodes["observations"][row, : length + 1].copy())
            if not online.relabel:
                episode["returns_to_go"] = torch.from_numpy(asked[row, :length]).float()
            self.store(episode)
        self.environment_steps += int(lengths.sum())
        self.explored.append(float(returns(episodes).mean()))
        return {"explore/return": self.explored[-1], "explore/length": float(lengths.mean()),
                "environment_steps": self.environment_steps}  # fmt: skip

    def store(self, episode):
        """Put a collected trajectory into the buffer, and remember it for a resumed run as long as the buffer holds it."""
        row = self.buffer.add(**episode)
        if row is not None:
            self.episodes[row] = episode

    def measure(self):
        """Evaluate, and add a point to the curve. Returns numbers for the log."""
        self.last = evaluate_policy(self.learner.average, self.settings)
        mean = float(np.mean(self.last["returns"]))
        point = {
            "gradient_steps": self.learner.step,
            "environment_steps": self.environment_steps,
            "test_return": mean,
            "exploration_return": float(np.mean(self.explored)) if self.explored else None,
            "entropy": self.means.get("entropy"),
            "temperature": self.means.get("temperature"),
        }
        for key, value in point.items():
            self.curve[key].append(value)
        self.explored = []
        score = {"eval/normalised": float(self.normalise(mean))} if self.normalise else {}
        lengths = {"eval/length": float(np.mean(self.last["lengths"]))} if "lengths" in self.last else {}
        return {"eval/return": mean, **score, **lengths, "environment_steps": self.environment_steps}

    # ---------------------------------------------------------------------------------------------------- checkpoints

    STATE = ("environment_steps", "episodes", "curve", "recent", "means", "explored", "last")

    def state_dict(self):
        """What goes on beside the learner."""
        return {"added": self.buffer.added, **{name: getattr(self, name) for name in self.STATE}}

    def load_state_dict(self, state):
        self.buffer.added = state["added"]
        for row, episode in state["episodes"].items():
            self.buffer.put(row, **episode)
        for name in self.STATE:
            setattr(self, name, state[name])


def evaluate_policy(policy, settings):
    """Returns (and lengths) of the evaluation episodes, always from the same start states; see `evaluate`."""
    agent = measured_agent(policy, settings.data, settings.evaluation, settings.run.seed)
    seed = evaluation_seed(settings.run.seed)
    return evaluate(agent, settings.run.env, [0], settings.evaluation.num_eval_episodes, 0, seed)


def evaluation_seed(seed):
    """Of the resets of an evaluation."""
    return derive(seed, "evaluate")


def measured_agent(policy, data, evaluation, seed):
    """The Agent that is evaluated."""
    means = evaluation.use_action_means or not policy.stochastic
    generator = None if means else torch_generator(seed, "act")
    return Agent(policy, evaluation.eval_rtg, evaluation.eval_context, generator, spend=data.mode == "normal")


def measured(agent, env, task_ids, episodes, warmup, seed, later):
    """What the Agent earns in the episodes of its table row; arguments as of src/evaluation/evaluate.py."""
    return evaluate(agent, env, task_ids, episodes, warmup, evaluation_seed(seed), later)


def restore(saved):
    """Saved (src/evaluation/saved.py) -> (Policy, function warmup -> Agent)."""
    model, data, evaluation = saved.pick(ModelSettings, Data, Evaluation)
    policy = saved.filled(Policy(*saved.sizes, model, saved.horizon))
    return policy, lambda warmup: measured_agent(policy, data, evaluation, saved.seed)
