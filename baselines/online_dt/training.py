"""Both phases: gradient steps on a trajectory buffer and, online, one roll-out before each round of them."""

import argparse
import copy
from functools import partial

import numpy as np
import torch

from baselines.online_dt.lamb import Lamb
from baselines.online_dt.policy import Agent, Policy
from baselines.online_dt.replay import delayed
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import evaluate
from src.evaluation.rollout import returns, rollout
from src.models.heads import ActionDistribution, Temperature
from src.run.errors import require_finite
from src.run.seeding import derive, numpy_generator, torch_generator

GRADIENT_CLIP = 0.25
INITIAL_TEMPERATURE = 0.1
LOG_INTERVAL = 100  # gradient steps


class Learner:
    """The objective of both phases: maximum likelihood of the actions, with an entropy bonus of learned weight λ.

        J(θ) = − mean log π(a_t | ...)              over the valid steps of the windows
        H(θ) = mean entropy of π                    over the same steps, estimated by samples
        θ minimises J − λ H, λ = exp(ν), and ν minimises exp(ν) (H − H_target), H_target = −d_a

    A deterministic policy minimises the mean squared error of the scaled actions.
    `average` is what acts: with --ema_decay the exponential moving average of the weights (ours; how long a robot stays on its
    feet changes from one gradient step to the next), else the trained policy itself.
    Args: policy: Policy. args: the flags of the command.
    """

    def __init__(self, policy, args):
        self.policy, self.args, self.step = policy, args, 0
        self.average = copy.deepcopy(policy).requires_grad_(False) if args.ema_decay else policy
        kind = {"adamw": partial(torch.optim.AdamW, fused=True), "lamb": Lamb}[args.optimizer]
        self.optimizer = kind(policy.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
        target = -float(len(policy.action_range)) if args.target_entropy else None
        initial = args.init_temperature or INITIAL_TEMPERATURE
        temperature = Temperature(initial, target, args.temperature_learning_rate)
        self.temperature = temperature.to(policy.action_range.device)

    def update(self, window):
        """One gradient step on a batch of windows; returns {"loss", "nll", "entropy", "temperature"} as far as they exist."""
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * min((self.step + 1) / args.warmup_steps, 1)
            group["weight_decay"] = args.weight_decay  # a restored optimiser would bring that of its own phase
        torch.manual_seed(derive(args.seed, "dropout", self.step))  # dropout takes no generator
        self.policy.train()
        predicted, (targets, mask) = self.policy(window), self.policy.targets(window)
        values = {}
        if self.policy.stochastic:
            generator = torch.Generator(targets.device).manual_seed(derive(args.seed, "entropy", self.step))
            distribution = ActionDistribution(predicted.mean[mask], predicted.log_std[mask], predicted.squash)
            loss = values["nll"] = -distribution.log_prob(targets).mean()
            with torch.set_grad_enabled(args.use_entropy):  # without the term it is still logged
                samples = args.approximate_entropy_samples if args.use_entropy else 1
                values["entropy"] = distribution.entropy(samples, generator).mean()
            if args.use_entropy:
                values["temperature"] = self.temperature.value
                loss = loss - values["temperature"] * values["entropy"]
        else:
            loss = (predicted[mask] - targets).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        if args.use_entropy:
            self.temperature.update(values["entropy"])
        self.step += 1
        if args.ema_decay:
            decay = min(args.ema_decay, self.step / (self.step + 9))  # the first weights are soon forgotten
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
        learner: Learner. buffer: TrajectoryBuffer. args: the flags. normalise: function returns (n,) -> scores, or None.
    """

    def __init__(self, learner, buffer, args, normalise):
        self.learner, self.buffer, self.args, self.normalise = learner, buffer, args, normalise
        self.environment_steps = 0
        self.episodes = {}  # row of the buffer -> trajectory collected online, which a resumed run must put back
        self.curve = {key: [] for key in ("gradient_steps", "environment_steps", "test_return", "exploration_return", "entropy",
                                          "temperature")}  # fmt: skip
        self.recent, self.means, self.explored, self.last = {}, {}, [], None
        space = args.env.make().action_space
        self.bounds = space.low, space.high
        self.batch = make_batch(args.env, [0] * args.num_online_rollouts) if args.online_training else None

    def train(self, loop):
        """Train to the last step of the Loop; `explore` and evaluations are repeated where a stop signal ends them."""
        size = self.args.num_steps_per_iter
        for step in loop.steps():
            if self.args.online_training and (step - 1) % size == 0:
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
        args, step = self.args, self.learner.step
        by_end = args.model_type == "bc"
        window = self.buffer.draw(args.batch_size, args.K, torch_generator(args.seed, "batch", step), by_end)
        for name, value in self.learner.update(window).items():
            require_finite(value, f"the {name}")
            self.recent.setdefault(name, []).append(value)

    # -------------------------------------------------------------------------------------------------- the environment

    def explore(self, number):
        """Round `number` (from 0): roll the policy out, asking for the exploration return, and put the trajectories into the
        buffer. Returns numbers for the log."""
        args, names = self.args, (self.args.seed, "explore", number)
        policy = self.learner.policy  # not the average: the luck of the last weights differs from round to round
        generator = torch_generator(*names) if policy.stochastic else None
        low, high = self.bounds
        noise = None if policy.stochastic else args.exploration_noise * (high - low) / 2
        spend = args.mode == "normal"
        agent = Agent(
            policy, args.online_rtg, args.eval_context, generator, args.exploration_std, spend, noise, numpy_generator(*names)
        )  # fmt: skip
        seeds = [derive(*names, "reset", row) % 2**31 for row in range(args.num_online_rollouts)]
        episodes = rollout(agent, self.batch, seeds, args.env.max_episode_steps)
        lengths = episodes["lengths"]
        asked = args.online_rtg - np.cumsum(episodes["rewards"], 1, dtype=np.float64) + episodes["rewards"]
        if args.mode == "delayed":
            episodes["rewards"], asked = delayed(episodes["rewards"], lengths), np.full_like(asked, args.online_rtg)
        for row, length in enumerate(lengths):
            episode = {key: torch.from_numpy(episodes[key][row, :length].copy()) for key in ("actions", "rewards")}
            episode["observations"] = torch.from_numpy(episodes["observations"][row, : length + 1].copy())
            if not args.relabel:
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
        self.last = evaluate_policy(self.learner.average, self.args)
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


def evaluate_policy(policy, args):
    """Returns (and lengths) of the evaluation episodes, always from the same start states; see `evaluate`."""
    return evaluate(measured_agent(policy, args), args.env, [0], args.num_eval_episodes, 0, evaluation_seed(args.seed))


def evaluation_seed(seed):
    """Of the resets of an evaluation."""
    return derive(seed, "evaluate")


def measured_agent(policy, args):
    """The Agent that is evaluated."""
    means = args.use_action_means or not policy.stochastic
    generator = None if means else torch_generator(args.seed, "act")
    return Agent(policy, args.eval_rtg, args.eval_context, generator, spend=args.mode == "normal")


def restore(saved):
    """Saved (src/evaluation/saved.py) -> (Policy, function warmup -> Agent)."""
    policy = saved.filled(Policy(*saved.sizes, saved.settings, saved.horizon))
    return policy, lambda warmup: measured_agent(policy, argparse.Namespace(**saved.settings))
