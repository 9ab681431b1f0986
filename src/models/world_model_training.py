"""The world model in training: its settings, the held-out episodes, its loss and its validation."""

import dataclasses
import math

import numpy as np
import torch

from src.data.transitions import make_sampler
from src.models.world_model import WorldModel
from src.run import distributed
from src.run.errors import UserError, require_finite
from src.run.files import save_tensors
from src.run.flags import fraction, nonnegative_float, positive_float, positive_int
from src.run.loop import Loop, Optimisation
from src.run.seeding import derive, numpy_generator, torch_generator
from src.run.settings import setting


@dataclasses.dataclass(frozen=True)
class WorldModelOptimisation(Optimisation):
    """training"""

    epochs: int = setting(301, "passes over the data, where --steps is not given", positive_int)
    steps: int | None = setting(None, "gradient steps", positive_int)
    batch_size: int = setting(128, "transitions per step", positive_int)
    learning_rate: float = setting(1e-3, "of Adam", positive_float)
    lr_warmup_steps: int = 0
    weight_decay: float = setting(0.0, "decoupled (AdamW); 0 is plain Adam", nonnegative_float)
    grad_clip: float = setting(1.0, "largest gradient norm", positive_float)
    reward_weight: float = setting(1.0, "weight of the reward decoder's loss", nonnegative_float)
    state_weight: float = setting(1.0, "weight of the state decoder's loss", nonnegative_float)

    def over(self, transitions):
        """The same with its gradient steps known: --epochs passes over so many transitions where --steps is not given."""
        return dataclasses.replace(self, steps=self.steps or self.epochs * math.ceil(transitions / self.batch_size))

    def weighted(self, reward, state):
        """What is minimised, and on held-out episodes decides which weights are the best."""
        return self.reward_weight * reward + self.state_weight * state


@dataclasses.dataclass(frozen=True)
class Validation:
    """validation"""

    validation_share: float = setting(0.1, "share of each training task's episodes held out", fraction)
    eval_every: int = setting(1000, "gradient steps between validations and checkpoints", positive_int)


class WorldModelTraining:
    """The world model with its data.

    Args:
        run: RunSettings. episodes, held_out: Trajectories, see `split_episodes`. model, optimisation, decoding: their settings.
        rewards: Rewards, where it relabels.
    Attributes: model, validation (TransitionSampler of the held-out episodes), optimisation with its number of steps, parts and
    weights as a Loop wants them.
    """

    def __init__(self, run, episodes, held_out, *, model, optimisation, decoding, rewards=None):
        self.device = run.device
        self.sampler = make_sampler(episodes, model.context_horizon, decoding, rewards)
        self.validation = make_sampler(held_out, model.context_horizon)
        self.optimisation = optimisation.over(self.sampler.size)
        torch.manual_seed(derive(run.seed, "context"))
        self.model = WorldModel.from_settings(episodes.observations.shape[-1], episodes.actions.shape[-1], model)
        if model.standardise:
            self.model.set_normaliser(*flat_transitions(episodes))
        self.model.to(run.device)
        self.errors = distributed.parallel(DecodingErrors(self.model))
        self.optimizer = optimisation.optimizer(self.model.parameters())
        self.generator = torch_generator(run.seed, "context_batches")
        self.parts = {"model": self.model, "optimizer": self.optimizer, "generator": self.generator}
        self.weights = {"last": self.model}

    def take(self, model, origin):
        """Put a frozen WorldModel that was trained elsewhere in the place of the untrained one: no step is left to do.

        Raises UserError where it reads other observations or actions than the data have.
        """
        for name in ("observation", "action"):
            theirs, ours = (len(getattr(each, f"{name}_mean")) for each in (model, self.model))
            if theirs != ours:
                raise UserError(f"{origin} reads {name}s of {theirs} numbers, the data have {ours}: it is of another environment")
        self.model.load_state_dict(model.state_dict())
        self.optimisation = dataclasses.replace(self.optimisation, steps=0)

    def update(self, step):
        """One gradient step, number `step` from 1; returns the losses."""
        self.optimisation.schedule(self.optimizer, step)
        batch = self.sampler.draw(self.optimisation.batch_size, self.generator)
        reward, state = losses(self.errors, batch, self.device)
        loss = self.optimisation.weighted(reward, state)
        self.optimisation.descend(self.optimizer, self.model.parameters(), loss)
        return {"loss": loss.detach(), "reward_loss": reward.detach(), "state_loss": state.detach()}

    def train(self, directory, every, tensorboard):
        """Train to the last step, or go on from where the folder's state stands; returns the Loop. With no step to do the weights
        are kept as they are.

        Every `every` steps full validation; last.safetensors, and best.safetensors where the held-out loss is the lowest so far.
        """
        loop = Loop(directory, self.optimisation.steps, every, self.parts, self.weights, tensorboard)
        if not loop.total:
            if distributed.leads():
                save_tensors(directory / "best.safetensors", self.model.state_dict())
            loop.save()
        for step in loop.steps():
            values = self.update(step)
            loop.loss = values.pop("loss")
            if loop.due:
                with loop.measuring():
                    scores = validate(self.model, self.validation, self.device)
                loop.record(**{f"train/{name}": value.item() for name, value in values.items()}, **scores)
                *former, last = (self.optimisation.weighted(point["reward_loss"], point["state_loss"]) for point in loop.curve)
                require_finite(last, f"the validation loss at step {step}")
                if last < min(former, default=math.inf) and distributed.leads():
                    save_tensors(directory / "best.safetensors", self.model.state_dict())
        distributed.wait()  # for what the first process has written
        return loop


def split_episodes(episodes, share, seed):
    """Training and held-out episodes (Trajectories): of every task `share` of its whole episodes, drawn by the seed.

    Raises UserError where either part is empty.
    """
    order = numpy_generator(seed, "validation_split").permutation(len(episodes))
    held_out = np.zeros(len(episodes), bool)
    for task in episodes.tasks:
        rows = order[episodes.task_ids[order] == task]
        held_out[rows[: round(share * len(rows))]] = True
    if held_out.all() or not held_out.any():
        lacks = "train on: lower it" if held_out.all() else "validate on: raise it, or record more episodes of each task"
        raise UserError(f"--validation_share {share} leaves no episode to {lacks}")
    return episodes.take(np.flatnonzero(~held_out)), episodes.take(np.flatnonzero(held_out))


def flat_transitions(episodes):
    """All transitions of Trajectories: tensors (N, d_s), (N, d_a), (N, 1), (N, d_s)."""
    inside = episodes.inside
    arrays = episodes.observations[:, :-1], episodes.actions, episodes.rewards[..., None], episodes.observations[:, 1:]
    return [torch.from_numpy(array[inside]) for array in arrays]


class DecodingErrors(torch.nn.Module):
    """The errors of a world model on a batch: what the processes of a training compute each of their own rows."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, window, transition):
        return self.model.errors(*transition, self.model.contexts(*window))


def losses(errors, batch, device):
    """Losses (reward, state) of a batch of TransitionSampler: mean squared errors, standardised units. errors: DecodingErrors."""
    window, transition = ([value.to(device) for value in part] for part in batch)
    reward, state = map(distributed.gathered, errors(*own_rows(window, transition)))
    return reward.mean(), state.mean()


def own_rows(window, transition):
    """This process's part of a batch: consecutive windows, and the transitions that belong to them."""
    if distributed.size() == 1:
        return window, transition
    distributed.require_rows(len(window[0]), "--batch_size")
    if len(transition[0]) == len(window[0]):
        ends = torch.arange(len(window[0]) + 1)
    else:  # whole episodes, with a transition for each of their steps
        ends = torch.nn.functional.pad(window[3].sum(1).cumsum(0), (1, 0))
    rows = distributed.share(range(len(window[0])))
    first, last = ends[rows.start], ends[rows.stop]
    return [values[rows.start : rows.stop] for values in window], [values[first:last] for values in transition]


@torch.inference_mode()
def validate(model, sampler, device, chunk=8192):
    """Losses over every held-out transition, and the same as root mean squared errors in physical units.

    reward_std and state_std are the errors of predicting the mean: what a decoder that learned nothing reaches.
    """
    parts = []
    for number, batch in enumerate(sampler.chunks(chunk)):
        if number % distributed.size() != distributed.rank():
            continue
        window, (observations, actions, rewards, after) = ([value.to(device) for value in part] for part in batch)
        contexts = model.contexts(*window)
        own = torch.stack(model.losses(observations, actions, rewards, after, contexts)).cpu().double() * len(rewards)
        reward, state = model.decode(observations, actions, after, contexts)
        guesses = reward * model.reward_std + model.reward_mean, state * model.observation_std + model.observation_mean
        parts.append((number, own, *(value.cpu() for value in (*guesses, rewards, after))))
    parts = sorted((part for some in distributed.collected(parts) for part in some), key=lambda part: part[0])
    sums, predicted, true = torch.zeros(2, dtype=torch.float64), [], []
    for _, own, *guesses_and_truth in parts:
        sums += own
        predicted.append(guesses_and_truth[:2])
        true.append(guesses_and_truth[2:])
    scores = dict(zip(("reward_loss", "state_loss"), (sums / sampler.size).tolist(), strict=True))
    for position, name in enumerate(("reward", "state")):
        guess, truth = (torch.cat([pair[position] for pair in pairs]).double() for pairs in (predicted, true))
        scores[f"{name}_rmse"] = (guess - truth).square().mean().sqrt().item()
        scores[f"{name}_std"] = (truth - truth.mean(0)).square().mean().sqrt().item()
    return scores
