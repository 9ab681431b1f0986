"""Stage 2: train the belief over tasks on the logs of single-task agents.

    python -m baselines.borel.train_vae_offline --env-type gridworld --hindsight-relabelling True
    python -m baselines.borel.train_vae_offline --env-type escape_room --policy-replaying True

Gridworld: 6 minutes on one core. The same command continues an interrupted run. Writes
saves/<env_type>/log/borel/vae/<vae model name>/. Next: train_offline_agent. Loss and its one reduction: vae.py.
"""

import dataclasses
import sys

import numpy as np
import torch

from baselines.borel.beliefs import VAE_DONE, save_belief_model, vae_config
from baselines.borel.data import KEYS
from baselines.borel.mixing import Mixing, data_digests, load_logs, mix
from baselines.borel.settings import USUAL, borel_parser, decay_learning_rates, dependent_run, next_command, parse
from baselines.borel.vae import BeliefModel, BeliefSettings, LossSettings, task_spread
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import read_json, write_json
from src.run.flags import plain_name, positive_int
from src.run.loop import Loop
from src.run.provenance import provenance
from src.run.seeding import torch_generator
from src.run.settings import setting

COLLAPSED = 0.05  # share of the variance of μ between tasks below which a warning is given


@dataclasses.dataclass(frozen=True)
class Schedule:
    """schedule"""

    fresh_relabelling: bool = setting(False, "RR and PR are drawn anew in every epoch (ours), not once")
    num_iters: int = setting(100, "epochs over the roll-outs", positive_int)
    tasks_batch_size: int = setting(8, "tasks in an update", positive_int)
    decay_lr: bool = setting(False, "let the learning rate fall to 0 linearly")
    log_interval: int = setting(1, "epochs between two records", positive_int)
    save_interval: int = setting(5, "epochs between two checkpoints", positive_int)


@dataclasses.dataclass(frozen=True)
class Output:
    """output"""

    save_dir: str = setting(USUAL["models"], "main folder of belief models, below --output_dir")
    save_dir_prefix: str | None = setting(None, "default: relabel, replay or plain, with the recipe's suffix", plain_name)
    vae_model_name: str | None = setting(None, "name of the model (default: <prefix>__seed_<seed>)", plain_name)


SETTINGS = (Mixing, BeliefSettings, LossSettings, Schedule, Output)


def make_parser():
    return borel_parser(__doc__, SETTINGS)


@main_guard
def main(argv=None):
    run, mixing, belief, loss, schedule, output = parse(make_parser(), "train_vae_offline", SETTINGS, argv)
    if mixing.hindsight_relabelling and belief.decode_state:
        raise UserError("--hindsight-relabelling cannot mix tasks that differ in their dynamics; use --policy-replaying True")
    check_loss(belief, loss)
    remedy = "relabel" if mixing.hindsight_relabelling else "replay" if mixing.policy_replaying else "plain"
    name = output.vae_model_name or f"{output.save_dir_prefix or remedy + run.suffix}__seed_{run.seed}"
    directory = run.directory(output.save_dir, "vae", name)
    finished = run.resume and (directory / VAE_DONE).exists()
    logs = None if finished else load_logs(run, mixing)
    model = None if finished else make_model(run, belief, logs[0].rewards)
    with dependent_run(run, directory, data_digests(run, mixing)):
        if not finished:
            train(run, mixing, belief, loss, schedule, logs, model, directory)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
        summary = read_json(directory / VAE_DONE, "task_spread")
    if summary["task_spread"] < COLLAPSED:
        print(f"warning: the belief hardly depends on the task (spread {summary['task_spread']:.3f}): lower --kl-weight")
    follow = ["--transform-data-bamdp", "True", "--vae-model-name", name]
    if remedy == "plain":
        follow += ["--policy-replaying" if belief.decode_state else "--hindsight-relabelling", "False"]
    follow = next_command(run, "train_offline_agent", *follow)
    figures = ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, float))
    print(f"belief model in {directory}, {figures}; next: {follow}")


def check_loss(belief, loss):
    """Raises UserError where a setting of the loss has no effect on such a model; a note where another one overrides it."""
    if loss.state_loss_coeff != 1 and not belief.decode_state:
        raise UserError("--state-loss-coeff has no effect without --decode-state True: leave it 1")
    if loss.decode_only_past and loss.num_decoded_transitions:
        print("note: --decode-only-past True decodes all of the past, whatever --num-decoded-transitions says", file=sys.stderr)


def make_model(run, belief, rewards):
    """A fresh belief model; rewards: those of the data, or of random play. Raises UserError as `vae_config`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(run.seed, "belief model").initial_seed())
        return BeliefModel(vae_config(run.problem, belief, rewards)).to(run.device)


class VaeData:
    """Roll-outs as tensors (N, R, T, ...) on the device, with what the decoders need beside them."""

    def __init__(self, run, belief, rollouts):
        self.device = run.device
        self.arrays = {key: torch.from_numpy(values) for key, values in rollouts.arrays().items()}
        self.arrays |= belief_extras(run.problem, belief, rollouts.next_obs)
        self.tasks = standardised_tasks(run.problem)[rollouts.task_ids] if belief.decode_task else None
        self.decodable = None
        if not rollouts.starts_recorded:  # the first step of later episodes: obs is not where the environment stood
            self.decodable = torch.ones(run.problem.steps)
            self.decodable[run.problem.horizon :: run.problem.horizon] = 0

    def batch(self, tasks, chosen):
        """Rows (A,) of tasks × roll-outs chosen (n,) -> batch of A · n roll-outs for `BeliefModel.loss`."""
        batch = {key: values[tasks[:, None], chosen].flatten(0, 1).to(self.device) for key, values in self.arrays.items()}
        if self.tasks is not None:
            batch["tasks"] = self.tasks[tasks].repeat_interleave(len(chosen), 0).to(self.device)
        if self.decodable is not None:
            batch["decodable"] = self.decodable.to(self.device)
        return batch


def belief_extras(problem, belief, next_obs):
    """Index of the decoder's head for each next observation (..., d), where the decoder has many."""
    if not belief.multihead_for_reward:
        return {}
    return {"heads": torch.from_numpy(problem.environment.cell_index(next_obs)).long()}


def standardised_tasks(problem):
    """Parameters of all tasks, (tasks, size), mean 0 and variance 1."""
    flat = np.concatenate([values.reshape(problem.num_tasks, -1) for values in problem.tasks.values()], 1)
    return torch.from_numpy((flat - flat.mean(0)) / (flat.std(0) + 1e-8)).float()


def train(run, mixing, belief, loss, schedule, logs, model, directory):
    """Train and save `model` on `logs` (see `load_logs`); per epoch the roll-outs are permuted once for all tasks, and tasks are
    grouped at random.

    With --fresh-relabelling every epoch reads other roll-outs: fixed ones, some 500 per task, are learned by heart.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=loss.vae_lr, fused=True)
    loop = Loop(
        directory, schedule.num_iters, schedule.log_interval, {"model": model, "optimizer": optimizer},
        tensorboard=run.tensorboard, unit="epoch", save_every=schedule.save_interval,
    )  # fmt: skip

    def drawn(epoch):
        return VaeData(run, belief, mix(run, mixing, *logs, "", *([epoch] if schedule.fresh_relabelling else [])))

    first = loop.step
    data = drawn(min(first, schedule.num_iters - 1))
    for done in loop.steps():
        epoch = done - 1
        if schedule.decay_lr:
            decay_learning_rates([optimizer], epoch, schedule.num_iters)
        if schedule.fresh_relabelling and epoch > first:
            data = drawn(epoch)
        parts = train_epoch(model, optimizer, data, loss, schedule.tasks_batch_size, torch_generator(run.seed, "epoch", epoch))
        if loop.due:
            require_finite(parts["loss"], "the loss of the belief model", "--vae-lr")
            with loop.measuring():
                spread = measure_spread(model, data)
            loop.record(**parts, task_spread=spread)
    save_belief_model(directory, model)
    record = {key: value for key, value in loop.curve[-1].items() if key != "step"}
    write_json(directory / VAE_DONE, {**record, "provenance": provenance()})


def train_epoch(model, optimizer, data, settings, group_size, generator):
    """One pass over the roll-outs, `group_size` tasks in an update; returns the mean loss and its parts."""
    tasks, count = data.arrays["rewards"].shape[:2]
    sums, updates = {}, 0
    for chosen in torch.randperm(count, generator=generator).split(settings.vae_batch_num_rollouts_per_task):
        for group in torch.randperm(tasks, generator=generator).split(group_size):
            parts = vae_update(model, optimizer, data.batch(group, chosen), settings, generator)
            sums = {key: sums.get(key, 0) + value for key, value in parts.items()}
            updates += 1
    return {key: float(value) / updates for key, value in sums.items()}


def vae_update(model, optimizer, batch, settings, generator):
    """One step of Adam; returns the loss and its parts, detached."""
    loss, parts = model.loss(batch, settings, generator)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach(), **{key: value.detach() for key, value in parts.items()}}


@torch.inference_mode()
def measure_spread(model, data, count=16):
    """`task_spread` of the final beliefs on up to `count` roll-outs of each task."""
    rollouts = {key: data.arrays[key][:, -count:] for key in KEYS}  # the last ones: made by trained agents
    tasks = rollouts["rewards"].shape[0]
    flat = {key: values.flatten(0, 1).to(data.device) for key, values in rollouts.items()}
    mean, _ = model.beliefs(flat["actions"], flat["next_obs"], flat["rewards"])
    return task_spread(mean[:, -1].unflatten(0, (tasks, -1)))


if __name__ == "__main__":
    main()
