"""Behaviour policies by stable-baselines3's SAC: one agent per task, in segments that a killed run repeats exactly."""

import gymnasium as gym
import numpy as np
import torch

from src.behaviour.logs import TaskLogs
from src.behaviour.measure import measure, measure_random
from src.behaviour.store import History, is_finished, open_task, read_curve, write_behaviour
from src.run.errors import UserError, is_full, require_finite, shortened
from src.run.loop import Loop
from src.run.seeding import derive
from src.run.stepping import EnvironmentLoop

BUFFER_KEYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def train_task(run, agent, checkpoints, task, report):
    """Train the SAC agent of one task, in segments of save_freq steps, and write its checkpoints and return curve.

    Every segment starts a fresh episode and reseeds all that stable-baselines3 draws from with a function of (seed,
    task, step). So a checkpoint need not hold the state of any generator or simulator, and a run that was killed
    repeats the segment exactly. `report(steps)` is called after each segment. The result is in the files; returns the
    means {"return": last checkpoint, "random": uniform actions}.
    """
    with open_task(run, agent, checkpoints, task) as directory:
        if not is_finished(directory):
            _train(run, agent, checkpoints, task, directory, report)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
        curve = read_curve(directory)
    return {"return": np.mean(curve["stochastic_returns"][-1]), "random": np.mean(curve["random_returns"])}


def _train(run, agent, checkpoints, task, directory, report):
    model = SegmentedSAC(run, agent, task)
    history = History.empty("stochastic_returns", "deterministic_returns")
    loop = Loop(
        directory, agent.num_steps, checkpoints.save_freq, {"model": model, "history": history},
        logger=lambda start: TaskLogs({task: directory}, agent.num_steps, start, run.tensorboard, report),
    )  # fmt: skip
    for step in loop.rounds(lambda start: min(checkpoints.save_freq, agent.num_steps - start)):
        with loop.measuring():  # a segment cannot be left with a checkpoint, it is repeated
            model.learn(step - loop.step)
            for name, value in model.losses().items():
                if value is not None:
                    require_finite(value, f"{name} of task {task}")
            # rounded to half precision before the evaluation: what is measured is what is stored
            weights = {name: value.cpu().half() for name, value in model.sac.actor.state_dict().items()}
            one, episodes = {name: value[None] for name, value in weights.items()}, checkpoints.eval_episodes
            returns = {
                "stochastic_returns": measure(run, [task], step, one, episodes)[0].tolist(),
                "deterministic_returns": measure(run, [task], step, one, episodes, deterministic=True)[0].tolist(),
            }
        history.add(step, weights, returns)
        means = {f"eval/{name}": float(np.mean(values)) for name, values in returns.items()}
        loop.logger.log(step, {task: {**means, **model.losses()}})
    write_behaviour(directory, history, measure_random(run, task, checkpoints.eval_episodes))


class CheckedEnvironment(gym.Wrapper):
    """An environment on one task as stable-baselines3 steps it, under the checks of every roll-out. Raises UserError."""

    def __init__(self, env, task):
        self.loop = EnvironmentLoop(env, [task])
        super().__init__(_Told(self.loop.environments[0]))
        self.loop.environments = [self.env]

    def reset(self, **told):
        """As `told`: to no seed and no task but at first, so that the environment goes on with its generator."""
        self.env.told = told
        return self.loop.reset([0])[0], {}

    def step(self, action):
        observations, rewards = self.loop.step([action])
        last = self.loop.steps == self.loop.env.max_episode_steps
        return observations[0], float(rewards[0]), bool(self.loop.ended[0]), last, {}


class _Told(gym.Wrapper):
    """Resets as it was told to, not as the loop says, whose every reset has a seed and a task."""

    def reset(self, **_):
        return self.env.reset(**self.told)


class SegmentedSAC:
    """stable-baselines3's SAC on one task, in segments; as a part of a Loop it is all that the next segment depends on."""

    def __init__(self, run, agent, task):
        from stable_baselines3 import SAC  # seconds of import, which nothing but training needs
        from stable_baselines3.common.logger import Logger as NoLogger

        self.seed, self.task = run.seed, task
        environment = CheckedEnvironment(run.env, task)
        environment.reset(options={"task": task})
        self.sac = SAC(
            "MlpPolicy",
            environment,
            learning_rate=agent.learning_rate,
            buffer_size=agent.buffer_size,
            learning_starts=agent.learning_starts,
            batch_size=agent.batch_size,
            tau=agent.tau,
            gamma=agent.gamma,
            ent_coef=agent.entropy_coefficient,
            policy_kwargs={"net_arch": list(agent.hidden_sizes)},
            device=run.device,
            seed=derive(run.seed, "sac", task, "init") % 2**32,
        )
        self.sac.set_logger(NoLogger(None, []))

    def learn(self, steps):
        """One segment, from a reset and with generators that are a function of (seed, task, step). Raises UserError."""
        self.sac.set_random_seed(derive(self.seed, "sac", self.task, self.sac.num_timesteps) % 2**32)
        self.sac.env.set_options({"task": self.task})
        self.sac._last_obs = None  # makes `learn` reset the environment
        try:
            self.sac.learn(steps, reset_num_timesteps=False, log_interval=None)
        except (ValueError, RuntimeError) as error:  # torch met numbers that it cannot go on with; the environment is checked
            if is_full(error):
                raise
            raise UserError(
                f"training of task {self.task} broke down ({type(error).__name__}: {shortened(error, 200)}): lower "
                "--learning_rate, or look for extreme values in its observations and rewards"
            ) from None

    def losses(self):
        """The last ones, for the log; None before the first update."""
        values = self.sac.logger.name_to_value
        return {f"train/{name}": values.get(f"train/{name}") for name in ("actor_loss", "critic_loss")}

    def state_dict(self):
        model, buffer = self.sac, self.sac.replay_buffer
        entropy = None  # weight of the bonus and its optimiser, where it is learned
        if model.ent_coef_optimizer is not None:
            entropy = {"logarithm": model.log_ent_coef.detach().clone(), "optimizer": model.ent_coef_optimizer.state_dict()}
        return {
            "num_timesteps": model.num_timesteps,
            "policy": model.policy.state_dict(),
            "actor_optimizer": model.actor.optimizer.state_dict(),
            "critic_optimizer": model.critic.optimizer.state_dict(),
            "entropy": entropy,
            "buffer": {key: torch.from_numpy(getattr(buffer, key)[: buffer.size()]) for key in BUFFER_KEYS},
            "position": buffer.pos,
            "full": buffer.full,
        }

    def load_state_dict(self, state):
        model = self.sac
        model.num_timesteps = state["num_timesteps"]
        model.policy.load_state_dict(state["policy"])
        model.actor.optimizer.load_state_dict(state["actor_optimizer"])
        model.critic.optimizer.load_state_dict(state["critic_optimizer"])
        if state["entropy"]:
            model.log_ent_coef.data.copy_(state["entropy"]["logarithm"])
            model.ent_coef_optimizer.load_state_dict(state["entropy"]["optimizer"])
        for key, values in state["buffer"].items():
            getattr(model.replay_buffer, key)[: len(values)] = values.numpy()
        model.replay_buffer.pos, model.replay_buffer.full = state["position"], state["full"]
