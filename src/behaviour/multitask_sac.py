"""One SAC agent for a whole family: it is told the task, and learns every transition for other tasks too.

The actor and the critics read the standardised task parameters beside the observation; where the environment has a `task_frame`,
in which all tasks are one, they look through it and are told nothing. Where the environment can say what
another task would have paid for a transition (`compute_rewards`), part of every batch is moved to a task drawn from the
list. Behaviour policies may know their task, test tasks included: they make data, they are not what is compared.
"""

import dataclasses
import time

import numpy as np
import torch

from src.behaviour.measure import measure, measure_random
from src.behaviour.policies import for_task, make_frame, task_features, unscale
from src.behaviour.replay import Replay
from src.behaviour.stacked_sac import StackedSAC
from src.behaviour.store import SHARED, History, behaviour_directory, is_finished, read_curve, write_behaviour
from src.evaluation.batch import make_batch
from src.run.directory import run_directory
from src.run.errors import UserError, require_finite
from src.run.files import load_state, save_state
from src.run.logger import Logger
from src.run.loop import StopSignal
from src.run.seeding import derive, numpy_generator, torch_generator


def family_settings(args, tasks):
    """Everything that the weights depend on: config.json of the run's folder, compared when a run resumes."""
    keys = ("num_steps", "save_freq", "learning_starts", "buffer_size", "batch_size", "updates_per_step", "learning_rate",
            "gamma", "tau", "entropy_coefficient", "hidden_sizes", "num_envs", "relabel_share", "decay_share", "eval_episodes",
            "algo", "seed")  # fmt: skip
    return {
        "env_type": args.env_type,
        "entry_point": args.env.entry_point,
        "max_episode_steps": args.env.max_episode_steps,
        "task_ids": list(tasks),
        **{key: getattr(args, key) for key in keys},
    }


def train_family(args, tasks):
    """Train the shared agent of `tasks`, or finish its training; returns the means {"return": last, "random": ...}.

    Training goes in rounds, one episode of `num_envs` tasks each. A round draws from generators that are a function of
    (seed, step), so a run that was killed goes on from its last state file and repeats what was lost exactly.
    """
    directory = behaviour_directory(args.output_dir, args.env_type) / SHARED
    torch.set_num_threads(1)  # products of this size gain nothing from more, and the last bits depend on the number
    with run_directory(directory, family_settings(args, tasks), args.resume):
        if not is_finished(directory):
            with StopSignal() as stop:
                _Run(args, list(tasks), directory).train(stop)
        (directory / "state.pt").unlink(missing_ok=True)
        curve = read_curve(directory, shared=True)
    return {"return": np.mean(curve["stochastic_returns"][-1]), "random": np.mean(curve["random_returns"])}


class _Run:
    """The state of a training run, and what it does with it."""

    def __init__(self, args, tasks, directory):
        self.args, self.tasks, self.directory = args, tasks, directory
        self.environment = args.env.make()
        self.features = torch.from_numpy(task_features(self.environment, self.tasks))
        relabels = hasattr(self.environment, "compute_rewards")
        if args.relabel_share > 0 and not relabels:
            raise UserError(f"{type(self.environment).__name__} has no compute_rewards to relabel with: give --relabel_share 0")
        if args.relabel_share > 0 and hasattr(self.environment, "task_frame"):
            raise UserError(f"{args.env_type} is one task in the agent's frame, there is no other: give --relabel_share 0")
        if args.buffer_size < args.num_envs:
            raise UserError(f"--buffer_size {args.buffer_size} holds less than one step of --num_envs {args.num_envs} tasks")
        self.space = self.environment.action_space
        self.info_keys = tuple(getattr(self.environment, "info_keys", ()))
        size, actions = self.environment.observation_space.shape[0], self.space.shape[0]
        self.learner = StackedSAC(
            1, size + self.features.shape[1], actions, args.hidden_sizes, learning_rate=args.learning_rate, gamma=args.gamma,
            tau=args.tau, entropy=args.entropy_coefficient, device=args.device,
            generators=[torch_generator(args.seed, "multitask_sac", "init")],
        )  # fmt: skip
        columns = {"observations": size, "actions": actions, "rewards": 1, "next_observations": size, "task": 1}
        columns |= {key: 1 for key in self.info_keys}
        capacity = min(args.buffer_size, args.num_steps + args.num_envs * args.env.max_episode_steps)
        self.replay = Replay(1, capacity, columns)
        self.history = History.empty("stochastic_returns")
        self.step = 0

    # -------------------------------------------------------------------------------------------------------- one round

    def play_round(self):
        """An episode of `num_envs` tasks side by side, and the updates that it pays for; returns numbers for the log."""
        args = self.args
        names = (args.seed, "multitask_sac", self.step)
        choice, noise = numpy_generator(*names), torch_generator(*names)
        ids = self.next_tasks()
        batch = make_batch(args.env, ids)
        features, frame = self.features[ids], make_frame(self.environment, ids)
        observations = batch.reset([derive(*names, "reset", row) for row in range(len(ids))])
        observations = frame.observe(observations) if frame else observations
        total, last = 0.0, None
        self.learner.set_learning_rate(self.learning_rate())
        for _ in range(args.env.max_episode_steps):
            if self.step < args.learning_starts:
                actions = choice.uniform(-1, 1, (len(ids), *self.space.shape)).astype(np.float32)
            else:
                told = torch.cat([torch.from_numpy(observations), features], 1)[None].to(args.device)
                draws = torch.randn(1, len(ids), *self.space.shape, generator=noise).to(args.device)
                actions = self.learner.act(told, draws)[0].cpu().numpy()
            played = unscale(actions, self.space.low, self.space.high)
            following, rewards = batch.step(frame.act(played) if frame else played)
            following = frame.observe(following) if frame else following
            infos = [batch.infos[key] for key in self.info_keys]
            columns = (observations, actions, rewards, following, ids, *infos)
            self.replay.add(*(np.reshape(column, (1, len(ids), -1)) for column in columns))
            observations, total = following, total + float(rewards.sum())
            former, self.step = self.step, self.step + len(ids)
            if self.step > args.learning_starts:
                updates = int(self.step * args.updates_per_step) - int(former * args.updates_per_step)
                last = self.improve(updates, choice, noise) or last
        if not np.isfinite(total):
            raise UserError(f"{args.env.entry_point}: rewards of tasks {ids.tolist()} are not all finite")
        return {"train/return": total / len(ids), **(self.learner.losses(*last) if last else {})}

    def learning_rate(self):
        """Constant, then falling linearly to 0 over the last `decay_share` of the steps: the last agent is not a lucky one."""
        left = self.args.num_steps - self.step
        return self.args.learning_rate * min(1.0, left / max(self.args.decay_share * self.args.num_steps, 1))

    def next_tasks(self):
        """(num_envs,) task ids: the next ones of an endless sequence of permutations of the tasks."""
        first = self.step // self.args.env.max_episode_steps
        places = np.arange(first, first + self.args.num_envs)
        orders = {n: numpy_generator(self.args.seed, "order", n).permutation(self.tasks) for n in set(places // len(self.tasks))}
        return np.array([orders[place // len(self.tasks)][place % len(self.tasks)] for place in places])

    def improve(self, updates, choice, noise):
        """`updates` gradient steps on batches drawn together; returns what the last one returned."""
        size, last = self.args.batch_size, None
        if not updates:
            return None
        batch = self.draw(updates * size, choice)
        noise = torch.randn(updates, 2 * size, *self.space.shape, generator=noise)
        batch = [part.view(updates, size, -1).to(self.args.device) for part in batch]
        noise = noise.to(self.args.device)
        for observations, actions, rewards, following, draws in zip(*batch, noise, strict=True):
            last = self.learner.update(observations[None], actions[None], rewards.mT, following[None], draws[None])
        return last

    def draw(self, count, choice):
        """`count` transitions (observations with features, actions, rewards, next observations with features).

        Every row is moved to another task with probability `relabel_share`.
        """
        rows = self.replay.sample(torch.from_numpy(choice.random((1, count))))
        rows = {name: values[0] for name, values in rows.items()}
        ids = rows["task"][:, 0].long()
        if self.args.relabel_share > 0:
            moved = np.flatnonzero(choice.random(count) < self.args.relabel_share)
            ids[moved] = torch.from_numpy(choice.choice(self.tasks, len(moved)))
            rows["rewards"][moved, 0] = torch.from_numpy(self.relabel(rows, moved, ids[moved].numpy()))
        features = self.features[ids]
        told = (torch.cat([rows[name], features], 1) for name in ("observations", "next_observations"))
        observations, following = told
        return observations, rows["actions"], rows["rewards"], following

    def relabel(self, rows, moved, ids):
        """Rewards (n,) of the transitions `moved` of `rows` under the tasks `ids`."""
        part = {name: values[moved].numpy() for name, values in rows.items()}
        tasks = {key: values[ids] for key, values in self.environment.unwrapped.tasks.items()}
        actions = unscale(part["actions"], self.space.low, self.space.high)
        infos = ({key: part[key][:, 0] for key in self.info_keys},) if self.info_keys else ()
        return self.environment.compute_rewards(part["observations"], actions, part["next_observations"], tasks, *infos)

    # ---------------------------------------------------------------------------------------------------------- the run

    def train(self, stop):
        """Rounds until `num_steps`, with a checkpoint whenever a multiple of `save_freq` has been passed."""
        args, state_file = self.args, self.directory / "state.pt"
        if state_file.exists():
            self.restore(load_state(state_file))
        log = Logger(self.directory, args.num_steps, self.step, tensorboard=args.tensorboard)
        saved = time.monotonic()
        while self.step < args.num_steps:
            former = self.step
            values = self.play_round()
            for name, value in values.items():
                require_finite(value, name)
            log.advance(self.step - former)
            log.log(self.step, values)
            if self.step // args.save_freq > former // args.save_freq or self.step >= args.num_steps:
                log.log(self.step, self.keep_checkpoint())
            if stop.received or time.monotonic() - saved > args.save_seconds or self.step >= args.num_steps:
                save_state(state_file, self.snapshot())
                saved = time.monotonic()
            if stop.received:
                log.close()
                stop.exit(self.step)
        log.close()
        random = [measure_random(args, task) for task in self.tasks]
        tensors = {"task_features": self.features[self.tasks]}
        write_behaviour(self.directory, self.history, random, tensors, {"task_ids": self.tasks})

    def keep_checkpoint(self):
        """Add the actor, rounded to half precision, to the history with its returns on every task."""
        weights = {name: value[0] for name, value in self.learner.actor_weights().items()}
        actors = [for_task(weights, self.features[task]) for task in self.tasks]
        stacked = {name: torch.stack([actor[name] for actor in actors]) for name in weights}
        returns = measure(self.args, self.tasks, self.step, stacked, frame=make_frame(self.environment, self.tasks))
        self.history.add(self.step, weights, {"stochastic_returns": returns.tolist()})
        return {"eval/return": float(returns.mean()), "eval/worst_task": float(returns.mean(1).min())}

    def snapshot(self):
        history = dataclasses.asdict(self.history)
        return {"step": self.step, "learner": self.learner.state_dict(), "replay": self.replay.state_dict(), "history": history}

    def restore(self, state):
        self.step, self.history = state["step"], History(**state["history"])
        self.learner.load_state_dict(state["learner"])
        self.replay.load_state_dict(state["replay"])
