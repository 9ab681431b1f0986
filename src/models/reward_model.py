"""A reward model: what each training task would pay for any transition, learned from what it did pay for its own.

    r = MLP(s, a, s', w)        w: an embedding of the task, learned too

Every task has recorded other transitions, and all share the network: what is learned of one task's rewards far from its goal
serves the others. So transitions can be moved to other tasks (src/data/relabel.py) without the environment's reward function. A
point between the embeddings of tasks that are near each other is a task between them: an imagined one.
"""

import contextlib
import math
import sys

import numpy as np
import torch
from torch import nn

from src.data.relabel import EnvironmentRewards, rewards_on
from src.data.scales import clipped, statistics
from src.run.config import num_tasks
from src.run.devices import schedule_factor
from src.run.errors import UserError
from src.run.files import digest, load_state, locked_file, save_state
from src.run.paths import reward_model_directory
from src.run.seeding import derive, numpy_generator, torch_generator

EMBEDDING_SIZE, WIDTH = 4, 128
BATCH, PASSES, MOST_STEPS, LEARNING_RATE, WEIGHT_DECAY = 1024, 20, 3000, 2e-3, 1e-3
HELD_OUT = 0.1  # of each task's episodes
NEIGHBOURS = 4  # training tasks that an imagined one lies between
TRUSTED = 0.8  # R² on held-out episodes below which relabelled rewards mislead
DIFFERENT = 0.02  # of R²: by so much another task's rewards must be worse, or all tasks pay alike
COMPARED_EPISODES, COMPARED_TASKS, PICKED = 1000, 10, 0.1  # with true rewards: episodes, tasks, best share of each
CHUNK = 1 << 12  # transitions at once


class RewardModel(nn.Module):
    """Rewards of transitions under a task's embedding; the normaliser of its inputs belongs to it.

    Args: inputs: numbers of a transition, see `transition_inputs`. tasks: K.
    """

    def __init__(self, inputs, tasks):
        super().__init__()
        self.embedding = nn.Embedding(tasks, EMBEDDING_SIZE)
        nn.init.normal_(self.embedding.weight, std=0.05)  # small: tasks move apart as their rewards do
        self.transition = nn.Linear(inputs, WIDTH)
        self.task = nn.Linear(EMBEDDING_SIZE, WIDTH, bias=False)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        for name, size in (("input", inputs), ("reward", 1)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
            self.register_buffer(f"{name}_bound", torch.full((size,), torch.inf))

    def set_normaliser(self, inputs, rewards):
        """From training transitions (N, inputs) and rewards (N,), by src/data/scales.py."""
        for name, values in (("input", inputs), ("reward", rewards[:, None])):
            for part, value in zip(("mean", "std", "bound"), statistics(values), strict=True):
                getattr(self, f"{name}_{part}").copy_(value)

    def forward(self, inputs, embeddings):
        """Transitions (..., inputs) and embeddings (..., 4) -> standardised rewards (...,)."""
        inputs = clipped((inputs - self.input_mean) / self.input_std, self.input_bound)
        return self.body(self.transition(inputs) + self.task(embeddings))[..., 0]

    def rewards(self, inputs, embeddings):
        """As `forward`, in physical units."""
        return self(inputs, embeddings) * self.reward_std + self.reward_mean


def transition_inputs(observations, actions, next_observations, infos, keys):
    """(s', s' − s, a) and the recorded infos `keys` of transitions, NumPy arrays (..., size) -> (..., inputs) float32.

    s is in them: their sum is linear. s' − s alone would drown in s', a step moves an observation little.
    """
    more = [np.asarray(infos[key], np.float32).reshape(*observations.shape[:-1], -1) for key in keys]
    return np.concatenate([next_observations, next_observations - observations, actions, *more], -1)


class LearnedRewards:
    """A trained RewardModel as Rewards (src/data/relabel.py).

    Args:
        model: RewardModel. task_ids: (K,) ascending, row i of the embeddings is task task_ids[i]. keys: infos that it reads.
        first: id of the first imagined task. embeddings: (K, 4), where they are not the model's own.
        facts, made_from: see Rewards.
    """

    privileges = "none"

    def __init__(self, model, task_ids, keys, first, embeddings=None, facts=None, made_from=None):
        self.model, self.task_ids, self.keys, self.first = model.eval().requires_grad_(False), np.asarray(task_ids), keys, first
        self.embeddings = model.embedding.weight if embeddings is None else embeddings
        self.facts, self.made_from = facts or {}, made_from or {}

    def _embeddings(self, tasks):
        return self.embeddings[torch.from_numpy(np.searchsorted(self.task_ids, tasks))]

    @torch.inference_mode()
    def __call__(self, observations, actions, next_observations, infos, tasks):
        inputs = torch.from_numpy(transition_inputs(observations, actions, next_observations, infos, self.keys))
        return self.model.rewards(inputs, self._embeddings(tasks)).numpy()

    def on(self, episodes):
        """Function task id -> rewards (E, T), see Rewards."""
        inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
        arrays = episodes.observations[:, :-1], episodes.actions, episodes.observations[:, 1:]
        inputs = transition_inputs(*(array[inside] for array in arrays), {k: v[inside] for k, v in episodes.infos.items()}, self.keys)

        @torch.inference_mode()
        def paid(task):
            rewards, embedding = np.zeros(inside.shape, np.float32), self._embeddings(np.array([task]))
            parts = torch.from_numpy(inputs).split(CHUNK)
            rewards[inside] = torch.cat([self.model.rewards(part, embedding) for part in parts]).numpy()
            return rewards

        return paid

    def imagined(self, number, generator):
        """Tasks between those of the data: a training task, drawn uniformly, and its NEIGHBOURS nearest, their embeddings mixed
        by weights drawn uniformly from the simplex; see Rewards."""
        near = torch.cdist(self.embeddings, self.embeddings).argsort(1)[:, :NEIGHBOURS]
        centres = generator.choice(len(near), number)
        weights = torch.from_numpy(generator.dirichlet(np.ones(near.shape[1]), number).astype(np.float32))
        new = (weights[..., None] * self.embeddings[near[centres]]).sum(1)
        ids = range(self.first, self.first + number)
        return LearnedRewards(
            self.model, [*self.task_ids, *ids], self.keys, self.first + number, torch.cat([self.embeddings, new]), self.facts,
            self.made_from,
        ), ids  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ training


def train_reward_model(episodes, keys, seed):
    """RewardModel of Trajectories of the training tasks, and its errors on the episodes that were held out.

    On one thread of the CPU, in seconds: its bits depend on the data and the seed alone.
    Returns: RewardModel, {"held_out_r2": of rewards by the own task's embedding, "wrong_task_r2": by another task's}; None where
    there is nothing to compare.
    """
    with one_thread():
        task_ids, rows = np.unique(episodes.task_ids, return_inverse=True)
        held_out = held_out_episodes(rows, seed)
        inputs, rewards, tasks = flat(episodes.take(np.flatnonzero(~held_out)), task_ids, keys)
        torch.manual_seed(derive(seed, "reward_model"))
        model = RewardModel(inputs.shape[-1], len(task_ids))
        model.set_normaliser(inputs, rewards)
        targets = (rewards - model.reward_mean) / model.reward_std
        generator, steps = torch_generator(seed, "reward_model_batches"), min(MOST_STEPS, math.ceil(PASSES * len(rewards) / BATCH))
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * schedule_factor(step, steps, steps // 20, "cosine")
            batch = torch.randint(len(rewards), (BATCH,), generator=generator)
            loss = (model(inputs[batch], model.embedding(tasks[batch])) - targets[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise UserError("the reward model's loss became infinite: look for extreme values in the dataset's rewards")
        return model, errors(model, episodes.take(np.flatnonzero(held_out)), task_ids, keys, seed)


@contextlib.contextmanager
def one_thread():
    """Within, torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def held_out_episodes(rows, seed):
    """Mask (E,) of a tenth of each task's episodes, one at least where the task has more than one; rows: the task of each (E,)."""
    order, mask = numpy_generator(seed, "reward_model_split").permutation(len(rows)), np.zeros(len(rows), bool)
    for task in range(rows.max() + 1):
        own = order[rows[order] == task]
        mask[own[: math.ceil(HELD_OUT * len(own)) if len(own) > 1 else 0]] = True
    return mask


def flat(episodes, task_ids, keys):
    """All transitions of Trajectories: tensors of inputs (N, inputs), rewards (N,) and rows of their tasks in `task_ids` (N,)."""
    inside = np.arange(episodes.rewards.shape[1]) < episodes.lengths[:, None]
    arrays = [array[inside] for array in (episodes.observations[:, :-1], episodes.actions, episodes.observations[:, 1:])]
    inputs = transition_inputs(*arrays, {key: values[inside] for key, values in episodes.infos.items()}, keys)
    tasks = np.repeat(np.searchsorted(task_ids, episodes.task_ids), episodes.lengths)
    return torch.from_numpy(inputs), torch.from_numpy(episodes.rewards[inside]), torch.from_numpy(tasks)


@torch.inference_mode()
def errors(model, episodes, task_ids, keys, seed):
    """R² of the rewards of Trajectories by their own task's embedding and by that of another task, drawn for each."""
    if not len(episodes):
        return {"held_out_r2": None, "wrong_task_r2": None}
    inputs, rewards, tasks = flat(episodes, task_ids, keys)
    wrong = tasks + torch.randint(1, max(2, len(task_ids)), tasks.shape, generator=torch_generator(seed, "reward_model_wrong"))
    wrong = wrong % len(task_ids)
    own, other = (
        r_squared(torch.cat([model.rewards(*part) for part in zip(inputs.split(CHUNK), embeddings.split(CHUNK), strict=True)]), rewards)
        for embeddings in (model.embedding(tasks), model.embedding(wrong))
    )
    return {"held_out_r2": own, "wrong_task_r2": other if len(task_ids) > 1 else None}


def judge(rewards, true, episodes, seed):
    """All that is known of learned Rewards, for a result file: their facts, and with `true` rewards (EnvironmentRewards or None)
    what `compare` says, also printed in one line."""
    if not true:
        return rewards.facts
    found = compare(rewards, true, episodes, seed)
    shown = {name: "-" if value is None else f"{value:.4g}" for name, value in found.items()}
    print(
        f"learned reward beside the true one: R² {shown['other_tasks_r2']} on other tasks' transitions; best episodes "
        f"{shown['best_learned']} (own {shown['best_own']}, by true rewards {shown['best_true']}), share of the gain {shown['gain_share']}"
    )
    return rewards.facts | found


def compare(rewards, true, episodes, seed):
    """What learned rewards are worth beside true ones, on Trajectories of training tasks.

    Returns {"other_tasks_r2": of transitions under other tasks than their own; "best_own", "best_learned", "best_true": mean true
    return, over tasks, of the best tenth by number of the task's own episodes, and of the best among those of all tasks, found by the
    learned and by the true rewards; "gain_share": what the learned ones gain over the own, as a share of what the true ones
    do}; None where there is nothing to compare.
    """
    tasks, generator = np.unique(episodes.task_ids), numpy_generator(seed, "compare_rewards")
    names = ("other_tasks_r2", "best_own", "best_learned", "best_true", "gain_share")
    if len(tasks) == 1:
        return dict.fromkeys(names)
    some = episodes.take(generator.choice(len(episodes), min(len(episodes), COMPARED_EPISODES), replace=False))
    places = np.searchsorted(tasks, some.task_ids) + generator.integers(1, len(tasks), len(some))
    others = tasks[places % len(tasks)]
    inside = np.arange(some.rewards.shape[1]) < some.lengths[:, None]
    r2 = r_squared(*(rewards_on(kind, some, others)[inside] for kind in (rewards, true)))
    paid, truly, best = rewards.on(episodes), true.on(episodes), []
    for task in tasks[:: math.ceil(len(tasks) / COMPARED_TASKS)]:
        own = episodes.task_ids == task
        count, returns = math.ceil(PICKED * own.sum()), truly(task).sum(1, dtype=np.float64)
        learned = np.where(own, episodes.returns, paid(task).sum(1, dtype=np.float64))
        best.append([np.sort(returns[own])[-count:].mean(), returns[np.argsort(learned)[-count:]].mean(), np.sort(returns)[-count:].mean()])
    own, learned, known = np.mean(best, 0)
    share = (learned - own) / (known - own) if known - own > 1e-9 * abs(own) else None
    return dict(zip(names, [r2, *(None if v is None else float(f"{v:.6g}") for v in (own, learned, known, share))], strict=True))


def r_squared(predicted, true):
    """1 − mean squared error / variance, rounded; None where the true values (N,) do not vary."""
    predicted, true = torch.as_tensor(predicted).double(), torch.as_tensor(true).double()
    spread = (true - true.mean()).square().sum()
    return round(float(1 - (predicted - true).square().sum() / spread), 4) if spread > 1e-12 else None


# ----------------------------------------------------------------------------------------------------------- the file


def make_rewards(run, data, true_rewards=False):
    """The Rewards by which a script relabels: learned ones, or with `true_rewards` the environment's. Raises UserError."""
    return EnvironmentRewards(data.environment, data.episodes) if true_rewards else learned_rewards(run, data)


def learned_rewards(run, data):
    """LearnedRewards of the training tasks, read from their file or trained now; prints one line that says what they are worth.

    One file for all scripts, the data, the tasks and the seed decide what is in it.
    Args: run: RunSettings. data: TrainingData. Raises UserError where the file is damaged or made from other data, and where the
    rewards of all tasks are the same function: such tasks differ in their dynamics, and relabelling is wrong.
    """
    path = reward_model_directory(run) / "reward_model.pt"
    keys = [key for key in getattr(data.environment, "info_keys", ()) if key in data.episodes.infos]
    made_from = {"dataset_sha256": data.sha256, "task_ids": list(data.train_tasks), "info_keys": keys, "seed": run.seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(path.with_name(".lock")):  # another run may be training it
        if run.resume and path.exists():
            state = load_state(path, *made_from, "facts", "model")
        else:
            model, facts = train_reward_model(data.episodes, keys, run.seed)
            state = {**made_from, "facts": facts, "model": model.state_dict()}
            save_state(path, state)
    for key, value in made_from.items():
        if state[key] != value:
            raise UserError(f"{path} was learned from another {key}: give the command once more with --no-resume, or delete it")
    model = RewardModel(len(state["model"]["input_mean"]), len(data.train_tasks))
    model.load_state_dict(state["model"])
    check(state["facts"])
    return LearnedRewards(
        model, sorted(data.train_tasks), keys, num_tasks(data.environment), facts=state["facts"],
        made_from={"reward_model_sha256": digest(state["model"])},
    )  # fmt: skip


def check(facts):
    """Print what a reward model is worth. Raises UserError where the tasks do not differ in their rewards."""
    own, wrong = facts["held_out_r2"], facts["wrong_task_r2"]
    shown = ["-" if value is None else f"{value:.4g}" for value in (own, wrong)]
    print(f"learned reward: R² {shown[0]} on held-out episodes of its tasks ({shown[1]} when asked about another task)")
    if own is None or own < TRUSTED:
        print(
            f"warning: relabelled rewards may mislead, R² is below {TRUSTED}: compare with --decode own in stage 3, --other_tasks none "
            "in stage 4, --no-relabel in a baseline",
            file=sys.stderr,
        )
    elif wrong is not None and wrong > own - DIFFERENT:
        raise UserError(
            f"the rewards of all tasks are one function (R² {own} for the own task, {wrong} for another): they differ in their "
            "dynamics and must not be relabelled; choose another --decode in stage 3, --other_tasks none in stage 4"
        )
