"""One SAC agent for a whole family: it is told the task, and learns every transition for other tasks too.

The actor and the critics read the standardised task parameters beside the observation; where the environment has a `task_frame`,
in which all tasks are one, they look through it and are told nothing. Where the environment can say what
another task would have paid for a transition (`compute_rewards`), part of every batch is moved to a task drawn from the
list. Behaviour policies may know their task, test tasks included: they make data, they are not what is compared.
"""

import math

import numpy as np
import torch

from src.behaviour.measure import measure, measure_random
from src.behaviour.policies import for_task, make_frame, task_features, to_bounds
from src.behaviour.replay import Replay
from src.behaviour.stacked_sac import StackedSAC
from src.behaviour.store import (
    SHARED,
    History,
    behaviour_directory,
    is_finished,
    made_by,
    open_policies,
    read_curve,
    write_behaviour,
)
from src.data.relabel import check_paid, pay
from src.evaluation.batch import make_batch
from src.run.errors import UserError, require_finite
from src.run.loop import Loop
from src.run.seeding import derive, numpy_generator, torch_generator


def train_family(run, agent, shared, checkpoints, tasks):
    """Train the shared agent of `tasks`, or finish its training; returns the means {"return": last, "random": ...}.

    Training goes in rounds, one episode of `num_envs` tasks each. A round draws from generators that are a function of
    (seed, step), so a run that was killed goes on from its last state file and repeats what was lost exactly.
    """
    directory = behaviour_directory(run.output_dir, run.env_type) / SHARED
    torch.set_num_threads(1)  # products of this size gain nothing from more, and the last bits depend on the number
    made = {**made_by(run, agent, shared, checkpoints), "task_ids": list(tasks)}
    with open_policies(run, directory, made, tasks):
        if not is_finished(directory):
            Family(run, agent, shared, checkpoints, list(tasks)).train(directory)
        (directory / "state.pt").unlink(missing_ok=True)
        curve = read_curve(directory, shared=True)
    return {"return": np.mean(curve["stochastic_returns"][-1]), "random": np.mean(curve["random_returns"])}


class Family:
    """The shared agent in training, with its replay memory, and what is done with them."""

    def __init__(self, run, agent, shared, checkpoints, tasks):
        self.run, self.settings, self.shared, self.checkpoints, self.tasks = run, agent, shared, checkpoints, tasks
        self.environment = run.env.make()
        self.features = torch.from_numpy(task_features(self.environment, self.tasks))
        relabels = hasattr(self.environment, "compute_rewards")
        if shared.relabel_share > 0 and not relabels:
            raise UserError(f"{type(self.environment).__name__} has no compute_rewards to relabel with: give --relabel_share 0")
        if shared.relabel_share > 0 and hasattr(self.environment, "task_frame"):
            raise UserError(f"{run.env_type} is one task in the agent's frame, there is no other: give --relabel_share 0")
        if shared.end_at_falls and not hasattr(self.environment, "fallen"):
            raise UserError(f"{type(self.environment).__name__} has no `fallen` that tells of falls: leave --end_at_falls out")
        if shared.end_at_falls and not hasattr(make_batch(run.env, tasks[:1]), "restart"):
            raise UserError(f"the batch_class of {run.env_type} has no `restart`, to begin rows anew: leave --end_at_falls out")
        if agent.buffer_size < shared.num_envs:
            raise UserError(f"--buffer_size {agent.buffer_size} holds less than one step of --num_envs {shared.num_envs} tasks")
        self.space = self.environment.action_space
        self.info_shapes = info_shapes(run.env, getattr(self.environment, "info_keys", ()))
        size, actions = self.environment.observation_space.shape[0], self.space.shape[0]
        self.learner = StackedSAC(
            1, size + self.features.shape[1], actions, agent.hidden_sizes, learning_rate=agent.learning_rate, gamma=agent.gamma,
            tau=agent.tau, entropy=agent.entropy_coefficient, device=run.device,
            generators=[torch_generator(run.seed, "multitask_sac", "init")],
        )  # fmt: skip
        columns = {"observations": size, "actions": actions, "rewards": 1, "next_observations": size, "task": 1}
        columns |= {key: math.prod(shape) for key, shape in self.info_shapes.items()}
        columns |= {"goes_on": 1} if shared.end_at_falls else {}
        self.round = shared.num_envs * run.env.max_episode_steps  # environment steps
        capacity = min(agent.buffer_size, agent.num_steps + self.round)
        self.replay = Replay(1, capacity, columns)
        self.history = History.empty("stochastic_returns")
        self.compared = False  # the rewards of compute_rewards with those that were paid

    def train(self, directory):
        """Rounds until `num_steps`, with a checkpoint whenever a multiple of `save_freq` has been passed."""
        parts = {"learner": self.learner, "replay": self.replay, "history": self.history}
        loop = Loop(
            directory, self.settings.num_steps, self.checkpoints.save_freq, parts, tensorboard=self.run.tensorboard,
            save_seconds=self.checkpoints.save_seconds,
        )  # fmt: skip
        for step in loop.rounds(lambda start: self.round):
            values = self.play_round(loop.step)
            for name, value in values.items():
                require_finite(value, name)
            if loop.due:
                with loop.measuring():
                    values |= self.keep_checkpoint(step)
            loop.logger.log(step, values)
        random = [measure_random(self.run, task, self.checkpoints.eval_episodes) for task in self.tasks]
        tensors = {"task_features": self.features[self.tasks]}
        write_behaviour(directory, self.history, random, tensors, {"task_ids": self.tasks})

    def play_round(self, step):
        """An episode of `num_envs` tasks side by side, from `step` on, and the updates that it pays for; numbers for the log."""
        names = (self.run.seed, "multitask_sac", step)
        choice, noise = numpy_generator(*names), torch_generator(*names)
        ids, device = self.next_tasks(step), self.run.device
        batch = make_batch(self.run.env, ids)
        features, frame = self.features[ids], make_frame(self.environment, ids)
        observations = batch.reset([derive(*names, "reset", row) for row in range(len(ids))])
        observations = frame.observe(observations) if frame else observations
        total, last = 0.0, None
        self.learner.set_learning_rate(self.learning_rate(step))
        for _ in range(self.run.env.max_episode_steps):
            if step < self.settings.learning_starts:
                actions = choice.uniform(-1, 1, (len(ids), *self.space.shape)).astype(np.float32)
            else:
                told = torch.cat([torch.from_numpy(observations), features], 1)[None].to(device)
                draws = torch.randn(1, len(ids), *self.space.shape, generator=noise).to(device)
                actions = self.learner.act(told, draws)[0].cpu().numpy()
            played = to_bounds(actions, self.space.low, self.space.high)
            following, rewards = batch.step(frame.act(played) if frame else played)
            following = frame.observe(following) if frame else following
            columns = [observations, actions, rewards, following, ids, *(batch.infos[key] for key in self.info_shapes)]
            observations, total = following, total + float(rewards.sum())
            if self.shared.end_at_falls:
                fallen = self.environment.fallen(following)
                columns.append(~fallen)
                rows = np.flatnonzero(fallen)
                begun = batch.restart(rows, [derive(*names, "restart", step, row) for row in rows.tolist()])
                observations = frame.observe(begun) if frame else begun
            self.replay.add(*(np.reshape(column, (1, len(ids), -1)) for column in columns))
            former, step = step, step + len(ids)
            if step > self.settings.learning_starts:
                last = self.improve(self.settings.updates(former, step), choice, noise) or last
        if not np.isfinite(total):
            raise UserError(f"{self.run.env.entry_point}: rewards of tasks {ids.tolist()} are not all finite")
        return {"train/return": total / len(ids), **(self.learner.losses(*last) if last else {})}

    def learning_rate(self, step):
        """Constant, then falling linearly to 0 over the last `decay_share` of the steps: the last agent is not a lucky one."""
        total = self.settings.num_steps
        return self.settings.learning_rate * min(1.0, (total - step) / max(self.shared.decay_share * total, 1))

    def next_tasks(self, step):
        """(num_envs,) task ids: the next ones of an endless sequence of permutations of the tasks."""
        first = step // self.run.env.max_episode_steps
        places = np.arange(first, first + self.shared.num_envs)
        orders = {n: numpy_generator(self.run.seed, "order", n).permutation(self.tasks) for n in set(places // len(self.tasks))}
        return np.array([orders[place // len(self.tasks)][place % len(self.tasks)] for place in places])

    def improve(self, updates, choice, noise):
        """`updates` gradient steps on batches drawn together; returns what the last one returned."""
        size, last = self.settings.batch_size, None
        if not updates:
            return None
        batch = self.draw(updates * size, choice)
        noise = torch.randn(updates, 2 * size, *self.space.shape, generator=noise)
        batch = [part.view(updates, size, -1).to(self.run.device) for part in batch]
        noise = noise.to(self.run.device)
        for observations, actions, rewards, following, *goes_on, draws in zip(*batch, noise, strict=True):
            ends = [goes_on[0].mT] if goes_on else []
            last = self.learner.update(observations[None], actions[None], rewards.mT, following[None], draws[None], *ends)
        return last

    def draw(self, count, choice):
        """`count` transitions (observations with features, actions, rewards, next observations with features, and with
        `end_at_falls` whether the episode goes on).

        Every row is moved to another task with probability `relabel_share`.
        """
        rows = self.replay.sample(torch.from_numpy(choice.random((1, count))))
        rows = {name: values[0] for name, values in rows.items()}
        ids = rows["task"][:, 0].long()
        if self.shared.relabel_share > 0:
            self.compare(rows, ids.numpy())
            moved = np.flatnonzero(choice.random(count) < self.shared.relabel_share)
            ids[moved] = torch.from_numpy(choice.choice(self.tasks, len(moved)))
            rows["rewards"][moved, 0] = torch.from_numpy(self.relabel(rows, moved, ids[moved].numpy()))
        features = self.features[ids]
        told = (torch.cat([rows[name], features], 1) for name in ("observations", "next_observations"))
        observations, following = told
        ends = [rows["goes_on"]] if self.shared.end_at_falls else []
        return observations, rows["actions"], rows["rewards"], following, *ends

    def compare(self, rows, ids):
        """Once: would the tasks `ids` (n,) of `rows` have paid what they did? Raises UserError."""
        if self.compared:
            return
        try:
            check_paid(self.environment, self.relabel(rows, slice(None), ids), rows["rewards"][:, 0].numpy())
        except UserError as error:
            raise UserError(f"{error}, or give --relabel_share 0") from None
        self.compared = True

    def relabel(self, rows, moved, ids):
        """Rewards (n,) of the transitions `moved` of `rows` under the tasks `ids`."""
        part = {name: values[moved].numpy() for name, values in rows.items()}
        actions = to_bounds(part["actions"], self.space.low, self.space.high)
        infos = {key: part[key].reshape(-1, *shape) for key, shape in self.info_shapes.items()}
        return pay(self.environment, part["observations"], actions, part["next_observations"], infos, ids)

    def keep_checkpoint(self, step):
        """Add the actor, rounded to half precision, to the history with its returns on every task."""
        weights = {name: value[0] for name, value in self.learner.actor_weights().items()}
        actors = [for_task(weights, self.features[task]) for task in self.tasks]
        stacked = {name: torch.stack([actor[name] for actor in actors]) for name in weights}
        frame = make_frame(self.environment, self.tasks)
        returns = measure(self.run, self.tasks, step, stacked, self.checkpoints.eval_episodes, frame=frame)
        self.history.add(step, weights, {"stochastic_returns": returns.tolist()})
        return {"eval/return": float(returns.mean()), "eval/worst_task": float(returns.mean(1).min())}


def info_shapes(env, keys):
    """{key: shape of one row} of the infos of a step, in the order of `keys`."""
    if not keys:
        return {}
    batch = make_batch(env, [0])
    batch.reset([0])
    batch.step(np.zeros((1, *batch.action_space.shape), np.float32))
    return {key: np.shape(batch.infos[key])[1:] for key in keys}
