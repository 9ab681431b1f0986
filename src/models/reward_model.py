"""A reward model: what each training task would pay for any transition, learned from what it did pay for its own.

    r = MLP(s, a, s', w)        w: an embedding of the task, learned too

Each task has recorded other transitions, and all share the network: what the rewards of one task tell far from its own paths
serves the others. So transitions can be moved to other tasks (src/data/relabel.py) without the environment's reward function.
"""

import contextlib
import math
import sys

import numpy as np
import torch
from torch import nn

from src.data.relabel import EnvironmentRewards, rewards_on
from src.data.scales import clipped, statistics
from src.run import distributed
from src.run.errors import UserError
from src.run.files import digest, load_state, locked_file, save_state
from src.run.loop import schedule_factor
from src.run.paths import reward_model_directory
from src.run.seeding import derive, numpy_generator, torch_generator

EMBEDDING_SIZE, WIDTH = 8, 64
BATCH, PASSES, MOST_STEPS = 256, 20, 6000
LEARNING_RATE, WEIGHT_DECAY = 4e-3, 1e-3
# Embeddings learn faster than the network, so that what tells tasks apart lies in them and not in the network's memory of each;
# noise on them makes what lies between two of them a task, too. Both decide how well other tasks' transitions are paid.
EMBEDDING_LEARNING_RATE, EMBEDDING_NOISE = 2e-2, 0.1
HELD_OUT = 0.1  # of each task's episodes
TRUSTED = 0.8  # R² on held-out episodes below which relabelled rewards may mislead
FEW = 5  # training tasks, below which nothing shows what one of them would pay where only the others have been
DIFFERENT = 0.02  # of R²: by so much another task's rewards must be worse, or all tasks pay alike
COMPARED_EPISODES, COMPARED_TASKS, PICKED = 1000, 10, 0.1  # see `compare`
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
        self.register_buffer("input_bound", torch.full((inputs,), torch.inf))

    def set_normaliser(self, inputs, rewards):
        """From training transitions (N, inputs) and rewards (N,), by src/data/scales.py."""
        for buffer, value in zip((self.input_mean, self.input_std, self.input_bound), statistics(inputs), strict=True):
            buffer.copy_(value)
        for buffer, value in zip((self.reward_mean, self.reward_std), statistics(rewards[:, None])[:2], strict=True):
            buffer.copy_(value)

    def forward(self, inputs, embeddings):
        """Transitions (..., inputs) and embeddings (..., w) -> standardised rewards (...,)."""
        inputs = clipped((inputs - self.input_mean) / self.input_std, self.input_bound)
        return self.body(self.transition(inputs) + self.task(embeddings))[..., 0]

    @torch.inference_mode()
    def rewards(self, inputs, embeddings):
        """Transitions (N, inputs) and embeddings (N, w) or (1, w) -> rewards (N,) in physical units."""
        pairs = zip(inputs.split(CHUNK), embeddings.expand(len(inputs), -1).split(CHUNK), strict=True)
        return torch.cat([self(*pair) for pair in pairs]) * self.reward_std + self.reward_mean


def transition_inputs(observations, actions, next_observations, infos, keys):
    """(s', s' − s, a) and the recorded infos `keys` of transitions, NumPy arrays (..., size) -> tensor (N, inputs).

    Together they tell s; s' and s alone would not tell s' − s, as a step moves an observation little.
    """
    parts = [next_observations, next_observations - observations, actions]
    places = actions.shape[:-1]  # perhaps none, where -1 says nothing
    parts += [infos[key].reshape(*places, math.prod(infos[key].shape[len(places) :])) for key in keys]
    return torch.from_numpy(np.concatenate(parts, -1, dtype=np.float32)).flatten(0, -2)


def flat(episodes, keys):
    """All transitions of Trajectories, one behind the other: mask (E, T) of their places, inputs (N, inputs), rewards (N,)."""
    inside = episodes.inside
    arrays = (array[inside] for array in (episodes.observations[:, :-1], episodes.actions, episodes.observations[:, 1:]))
    inputs = transition_inputs(*arrays, {key: episodes.infos[key][inside] for key in keys}, keys)
    return inside, inputs, torch.from_numpy(episodes.rewards[inside])


class LearnedRewards:
    """A trained RewardModel as Rewards (src/data/relabel.py).

    Args:
        model: RewardModel. task_ids: (K,) ascending; row i of the embeddings is task task_ids[i]. keys: infos that it reads.
        facts, made_from: see Rewards.
    """

    privileges = "none"

    def __init__(self, model, task_ids, keys, facts, made_from):
        self.model, self.task_ids, self.keys = model, np.asarray(task_ids), keys
        self.facts, self.made_from = facts, made_from

    def _embeddings(self, tasks):
        return self.model.embedding.weight.detach()[torch.from_numpy(np.searchsorted(self.task_ids, tasks))]

    def __call__(self, observations, actions, next_observations, infos, tasks):
        inputs = transition_inputs(observations, actions, next_observations, infos, self.keys)
        return self.model.rewards(inputs, self._embeddings(tasks.ravel())).numpy().reshape(tasks.shape)

    def on(self, episodes):
        """See Rewards."""
        inside, inputs, _ = flat(episodes, self.keys)

        def paid(task):
            rewards = np.zeros(inside.shape, np.float32)
            rewards[inside] = self.model.rewards(inputs, self._embeddings(np.array([task]))).numpy()
            return rewards

        return paid


# ------------------------------------------------------------------------------------------------------------ training


def train_reward_model(episodes, keys, seed):
    """RewardModel of Trajectories of the training tasks, and its errors on episodes that were held out (`held_out_errors`).

    Seconds on one thread of the CPU; its bits depend on the data and the seed alone. keys: infos that it reads. Raises UserError.
    """
    with one_thread():
        task_ids, rows = np.unique(episodes.task_ids, return_inverse=True)
        held_out = held_out_episodes(rows, seed)
        _, inputs, rewards = flat(episodes.take(np.flatnonzero(~held_out)), keys)
        tasks = torch.from_numpy(np.repeat(rows[~held_out], episodes.lengths[~held_out]))
        torch.manual_seed(derive(seed, "reward_model"))
        model, generator = RewardModel(inputs.shape[-1], len(task_ids)), torch_generator(seed, "reward_model_batches")
        model.set_normaliser(inputs, rewards)
        targets = (rewards - model.reward_mean) / model.reward_std
        rest = [parameter for parameter in model.parameters() if parameter is not model.embedding.weight]
        groups = [
            {"params": rest, "weight_decay": WEIGHT_DECAY},
            {"params": [model.embedding.weight], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        steps = min(MOST_STEPS, math.ceil(PASSES * len(rewards) / BATCH))
        for step in range(steps):
            factor = schedule_factor(step, steps, steps // 20, "cosine")
            for group, rate in zip(optimizer.param_groups, (LEARNING_RATE, EMBEDDING_LEARNING_RATE), strict=True):
                group["lr"] = rate * factor
            batch = torch.randint(len(rewards), (BATCH,), generator=generator)
            noise = EMBEDDING_NOISE * factor * torch.randn(BATCH, EMBEDDING_SIZE, generator=generator)
            loss = (model(inputs[batch], model.embedding(tasks[batch]) + noise) - targets[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise UserError("the reward model's loss became infinite: look for extreme values in the dataset")
        return model, held_out_errors(model, episodes.take(np.flatnonzero(held_out)), rows[held_out], keys, seed)


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
    """Mask (E,) of a tenth of each task's episodes, at least one where it has several; rows: the task of each episode (E,)."""
    order, mask = numpy_generator(seed, "reward_model_split").permutation(len(rows)), np.zeros(len(rows), bool)
    for task in range(rows.max() + 1):
        own = order[rows[order] == task]
        mask[own[: math.ceil(HELD_OUT * len(own)) if len(own) > 1 else 0]] = True
    return mask


def held_out_errors(model, episodes, rows, keys, seed):
    """{"held_out_r2", "wrong_task_r2"}: R² of the rewards of Trajectories by the embeddings of their tasks, rows (E,) of them,
    and by that of another task, drawn for each episode. None where there is none, or the rewards do not vary."""
    tasks = model.embedding.num_embeddings
    if not len(episodes):
        return {"held_out_r2": None, "wrong_task_r2": None}
    _, inputs, rewards = flat(episodes, keys)
    wrong = (rows + numpy_generator(seed, "reward_model_wrong").integers(1, max(2, tasks), len(rows))) % tasks
    own, other = (
        r_squared(model.rewards(inputs, model.embedding(torch.from_numpy(np.repeat(of, episodes.lengths)))), rewards)
        for of in (rows, wrong)
    )
    return {"held_out_r2": own, "wrong_task_r2": other if tasks > 1 else None}


def r_squared(predicted, true):
    """1 − mean squared error / variance, rounded; None where the true values (N,) do not vary."""
    predicted, true = (torch.as_tensor(values).double() for values in (predicted, true))
    spread = (true - true.mean()).square().sum()
    return round(float(1 - (predicted - true).square().sum() / spread), 4) if spread > 1e-12 else None


# ------------------------------------------------------------------------------------------------------- what it is worth


def judge(rewards, true, episodes, seed):
    """Facts of Rewards for the result of stage 3. With `true` (EnvironmentRewards, or None) those of learned ones say what
    `compare` finds, too, and it is printed in one line."""
    if not (rewards.facts and true):
        return rewards.facts
    found = compare(rewards, true, episodes, seed)
    shown = {name: "-" if value is None else f"{value:.4g}" for name, value in found.items()}
    print(
        f"learned rewards beside true ones: R² {shown['other_tasks_r2']} on other tasks' transitions; a task's best episodes "
        f"are worth {shown['best_learned']} (of its own {shown['best_own']}, by true rewards {shown['best_true']}): "
        f"{shown['gain_share']} of the gain"
    )
    return {"learned_reward": rewards.facts["learned_reward"] | found}


def compare(rewards, true, episodes, seed):
    """What learned rewards are worth beside true ones, on Trajectories of training tasks.

    For ten tasks the best episodes, a tenth of the number of its own, are picked three times: among its own ("best_own"); among
    those of all tasks by learned rewards, its own by those recorded ("best_learned"); and by true ones ("best_true"); each is
    their mean true return. "gain_share": (learned − own) / (true − own). "other_tasks_r2": of transitions under another task than
    their own, drawn for each episode. None where there is nothing to compare.
    """
    tasks, generator = np.unique(episodes.task_ids), numpy_generator(seed, "compare_rewards")
    names = ("other_tasks_r2", "best_own", "best_learned", "best_true", "gain_share")
    if len(tasks) == 1:
        return dict.fromkeys(names)
    some = episodes.take(generator.choice(len(episodes), min(len(episodes), COMPARED_EPISODES), replace=False))
    places = np.searchsorted(tasks, some.task_ids) + generator.integers(1, len(tasks), len(some))
    inside = some.inside
    r2 = r_squared(*(rewards_on(kind, some, tasks[places % len(tasks)])[inside] for kind in (rewards, true)))
    paid, truly, best = rewards.on(episodes), true.on(episodes), []
    for task in tasks[:: math.ceil(len(tasks) / COMPARED_TASKS)]:
        own = episodes.task_ids == task
        count, returns = math.ceil(PICKED * own.sum()), truly(task).sum(1, dtype=np.float64)
        learned = np.where(own, episodes.returns, paid(task).sum(1, dtype=np.float64))
        orders = np.where(own, returns, -np.inf), learned, returns
        best.append([returns[np.argsort(order)[-count:]].mean() for order in orders])
    own, learned, known = np.mean(best, 0)
    share = (learned - own) / (known - own) if known - own > 1e-9 * abs(own) else None
    return dict(zip(names, [r2, *(None if v is None else float(f"{v:.6g}") for v in (own, learned, known, share))], strict=True))


# -------------------------------------------------------------------------------------------------------------- the file


def make_rewards(run, data, true_rewards=False):
    """The Rewards by which a script relabels: learned ones, or with `true_rewards` the environment's. Raises UserError."""
    return EnvironmentRewards(data.environment, data.episodes) if true_rewards else learned_rewards(run, data)


def learned_rewards(run, data):
    """LearnedRewards of the training tasks, read from their file or trained now; says in one line what they are worth.

    One file for all scripts: data, tasks and seed decide what is in it. Nothing of a test task is read.
    Args: run: RunSettings. data: TrainingData. Raises UserError where the file is damaged or was made from other data, and where
    `check` refuses.
    """
    path = reward_model_directory(run) / "reward_model.pt"
    keys = [key for key in getattr(data.environment, "info_keys", ()) if key in data.episodes.infos]
    source = {"dataset_sha256": data.sha256, "task_ids": sorted(data.train_tasks), "info_keys": keys, "seed": run.seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    if distributed.leads():
        with locked_file(path.with_name(".lock")):  # another run may be training it
            if not (run.resume and path.exists()):
                model, errors = train_reward_model(data.episodes, keys, run.seed)
                save_state(path, {**source, "errors": errors, "model": model.state_dict()})
    distributed.wait()
    state = load_state(path, *source, "errors", "model")
    for key, value in source.items():
        if state[key] != value:
            raise UserError(f"{path} was learned from another {key}: delete it, or pass --no-resume to start again")
    check(state["errors"], len(source["task_ids"]))
    model = RewardModel(len(state["model"]["input_mean"]), len(source["task_ids"]))
    model.load_state_dict(state["model"])
    facts, made_from = {"learned_reward": state["errors"]}, {"reward_model_sha256": digest(state["model"])}
    return LearnedRewards(model, source["task_ids"], keys, facts, made_from)


def check(errors, tasks):
    """Print what a reward model of so many tasks is worth. Raises UserError where these do not differ in their rewards."""
    own, wrong = errors["held_out_r2"], errors["wrong_task_r2"]
    shown = ["-" if value is None else f"{value:.4g}" for value in (own, wrong)]
    print(f"learned rewards: R² {shown[0]} on held-out episodes of their tasks ({shown[1]} for another task's)")
    poor = own is None or own < TRUSTED
    if not poor and wrong is not None and wrong > own - DIFFERENT:
        raise UserError(
            f"all tasks pay alike (R² {own} for the task's own rewards, {wrong} for another task's): they differ in their "
            "dynamics and must not be relabelled; choose another --decode in stage 3, --other_tasks none in stage 4"
        )
    if poor or tasks < FEW:
        reason = f"R² is not above {TRUSTED}" if poor else f"{tasks} training tasks may be too few to learn what another pays"
        print(
            f"warning: relabelled rewards may mislead ({reason}): compare with --decode own in stage 3, --other_tasks none in "
            "stage 4, --no-relabel in a baseline",
            file=sys.stderr,
        )
