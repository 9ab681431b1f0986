"""Stage 2: train the belief over tasks on the logs of single-task agents.

    python -m baselines.borel.train_vae_offline --env-type gridworld --hindsight-relabelling True
    python -m baselines.borel.train_vae_offline --env-type escape_room --policy-replaying True

Gridworld: 6 minutes on one core. The same command continues an interrupted run. Writes
saves/<env_type>/log/borel/vae/<vae model name>/. Next: train_offline_agent. Loss and its one reduction: vae.py.
"""

import sys

import numpy as np
import torch

from baselines.borel.beliefs import VAE_DONE, save_belief_model, vae_config
from baselines.borel.data import KEYS, read_document
from baselines.borel.mixing import add_mixing_flags, data_digests, load_logs, mix
from baselines.borel.settings import (
    USUAL,
    borel_parser,
    decay_learning_rates,
    dependent_run,
    next_command,
    parse,
    resolved,
    run_folder,
)
from baselines.borel.vae import BeliefModel, LossSettings, task_spread
from src.run.config import natural, nonnegative_float, plain_name, positive_float, positive_int
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import write_json
from src.run.loop import Loop
from src.run.provenance import provenance
from src.run.seeding import torch_generator

COLLAPSED = 0.05  # share of the variance of μ between tasks below which a warning is given


def make_parser():
    parser = borel_parser(__doc__)
    data = parser.add_argument_group("data")
    add_mixing_flags(data)
    data.add_argument("--fresh-relabelling", action="boolean", default=False,
                      help="RR and PR are drawn anew in every epoch (ours), not once")  # fmt: skip
    add_model_flags(parser)
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--num-iters", type=positive_int, default=100, help="epochs over the roll-outs")
    schedule.add_argument("--tasks-batch-size", type=positive_int, default=8, help="tasks in an update")
    schedule.add_argument("--decay-lr", action="boolean", default=False, help="let the learning rate fall to 0 linearly")
    schedule.add_argument("--log-interval", type=positive_int, default=1, help="epochs between two records")
    schedule.add_argument("--save-interval", type=positive_int, default=5, help="epochs between two checkpoints")
    output = parser.add_argument_group("output")
    output.add_argument("--save-dir", default=USUAL["models"], help="main folder of belief models, below --output_dir")
    output.add_argument("--save-dir-prefix", type=plain_name, help="default: relabel, replay or plain, with the recipe's suffix")
    output.add_argument("--vae-model-name", type=plain_name, help="name of the model (default: <prefix>__seed_<seed>)")
    return parser


def add_model_flags(parser):
    """Flags of encoder, decoders and loss, which the online variant shares."""
    model = parser.add_argument_group("belief model")
    sizes = {"type": positive_int, "nargs": "*"}
    model.add_argument("--task-embedding-size", type=positive_int, default=5, help="dimensions of the latent")
    model.add_argument("--aggregator-hidden-size", type=positive_int, default=128, help="units of the GRU")
    model.add_argument("--layers-before-aggregator", **sizes, default=[], help="layers between embeddings and GRU")
    model.add_argument("--layers-after-aggregator", **sizes, default=[], help="layers between GRU and latent")
    model.add_argument("--action-embedding-size", type=natural, default=16, help="0: the encoder does not read actions")
    model.add_argument("--state-embedding-size", type=natural, default=32, help="0: the encoder does not read states")
    model.add_argument("--reward-embedding-size", type=natural, default=16, help="0: the encoder does not read rewards")
    model.add_argument("--reward-decoder-layers", type=positive_int, nargs="+", default=[32, 32], help="widths")
    model.add_argument("--rew-pred-type", choices=["deterministic", "bernoulli"], default="deterministic",
                       help="squared error, or the probability that the reward is 1")  # fmt: skip
    model.add_argument("--multihead-for-reward", action="boolean", default=False, help="one output per cell (gridworld)")
    model.add_argument("--input-prev-state", action="boolean", default=False, help="the reward decoder reads s")
    model.add_argument("--input-action", action="boolean", default=False, help="the reward decoder reads a")
    model.add_argument("--input-next-state", action="boolean", default=True, help="the reward decoder reads s'")
    model.add_argument("--decode-state", action="boolean", default=False, help="decode s' too: tasks differ in their dynamics")
    model.add_argument("--predict-change", action="boolean", default=False, help="with --decode-state: s' − s (ours)")
    model.add_argument("--state-decoder-layers", type=positive_int, nargs="+", default=[32, 32], help="widths")
    model.add_argument("--decode-task", action="boolean", default=False, help="decode the task's parameters too")
    model.add_argument("--disable-decoder", action="boolean", default=False, help="do not decode rewards")
    model.add_argument("--disable-stochasticity-in-latent", action="boolean", default=False, help="decode μ, not a sample")
    model.add_argument("--learn-prior", action="boolean", default=False, help="learn q_{−1} instead of N(0, I)")
    loss = parser.add_argument_group("loss")
    loss.add_argument("--vae-lr", type=positive_float, default=3e-4, help="learning rate of Adam")
    loss.add_argument("--vae-batch-num-rollouts-per-task", type=positive_int, default=8, help="roll-outs per task in an update")
    loss.add_argument("--kl-weight", type=nonnegative_float, default=0.05, help="β where all terms are sums; see vae.py")
    loss.add_argument("--kl-to-gauss-prior", action="boolean", default=False, help="KL to N(0, I) at every step")
    loss.add_argument("--rew-loss-coeff", type=nonnegative_float, default=1.0, help="weight of the reward loss")
    loss.add_argument("--state-loss-coeff", type=nonnegative_float, default=1.0, help="weight of the state loss")
    loss.add_argument("--vae-batch-num-elbo-terms", type=positive_int, help="beliefs per roll-out that decode (default: all)")
    loss.add_argument("--num-decoded-transitions", type=positive_int, help="transitions decoded per roll-out (default: all)")
    loss.add_argument("--decode-only-past", action="boolean", default=False, help="do not decode what is still to come")


@main_guard
def main(argv=None):
    args = parse(make_parser(), "train_vae_offline", argv)
    if args.hindsight_relabelling and args.decode_state:
        raise UserError("--hindsight-relabelling cannot mix tasks that differ in their dynamics; use --policy-replaying True")
    name = args.vae_model_name or f"{args.save_dir_prefix or remedy(args) + args.suffix}__seed_{args.seed}"
    directory = run_folder(args, args.save_dir, "vae", name)
    finished = args.resume and (directory / VAE_DONE).exists()
    logs = None if finished else load_logs(args)
    model = None if finished else make_model(args, logs[0].rewards)
    with dependent_run(args, directory, resolved(args), data_digests(args)):
        if not finished:
            train(args, logs, model, directory)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
        summary = read_document(directory / VAE_DONE, "task_spread")
    if summary["task_spread"] < COLLAPSED:
        print(f"warning: the belief hardly depends on the task (spread {summary['task_spread']:.3f}): lower --kl-weight")
    follow = ["--transform-data-bamdp", "True", "--vae-model-name", name]
    if remedy(args) == "plain":
        follow += ["--policy-replaying" if args.decode_state else "--hindsight-relabelling", "False"]
    follow = next_command(args, "train_offline_agent", *follow)
    figures = ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, float))
    print(f"belief model in {directory}, {figures}; next: {follow}")


def remedy(args):
    """How the data were mixed, as the models' names tell it."""
    return "relabel" if args.hindsight_relabelling else "replay" if args.policy_replaying else "plain"


def make_model(args, rewards):
    """A fresh belief model; rewards: those of the data, or of random play."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(args.seed, "belief model").initial_seed())
        return BeliefModel(vae_config(args, rewards)).to(args.device)


def loss_settings(args):
    """The flags of the loss; a note where one has no effect."""
    if args.decode_only_past and args.num_decoded_transitions:
        print("note: --decode-only-past True decodes all of the past, whatever --num-decoded-transitions says", file=sys.stderr)
    return LossSettings(**{key: getattr(args, key) for key in LossSettings.__dataclass_fields__})


class VaeData:
    """Roll-outs as tensors (N, R, T, ...) on the device, with what the decoders need beside them."""

    def __init__(self, args, rollouts):
        self.device = args.device
        self.arrays = {key: torch.from_numpy(values) for key, values in rollouts.arrays().items()}
        self.arrays |= belief_extras(args, rollouts.next_obs)
        self.tasks = standardised_tasks(args.problem)[rollouts.task_ids] if args.decode_task else None
        self.decodable = None
        if not rollouts.starts_recorded:  # the first step of later episodes: obs is not where the environment stood
            self.decodable = torch.ones(args.problem.steps)
            self.decodable[args.problem.horizon :: args.problem.horizon] = 0

    def batch(self, tasks, chosen):
        """Rows (A,) of tasks × roll-outs chosen (n,) -> batch of A · n roll-outs for `BeliefModel.loss`."""
        batch = {key: values[tasks[:, None], chosen].flatten(0, 1).to(self.device) for key, values in self.arrays.items()}
        if self.tasks is not None:
            batch["tasks"] = self.tasks[tasks].repeat_interleave(len(chosen), 0).to(self.device)
        if self.decodable is not None:
            batch["decodable"] = self.decodable.to(self.device)
        return batch


def belief_extras(args, next_obs):
    """Index of the decoder's head for each next observation (..., d), where the decoder has many."""
    if not args.multihead_for_reward:
        return {}
    return {"heads": torch.from_numpy(args.problem.environment.cell_index(next_obs)).long()}


def standardised_tasks(problem):
    """Parameters of all tasks, (tasks, size), mean 0 and variance 1."""
    flat = np.concatenate([values.reshape(problem.num_tasks, -1) for values in problem.tasks.values()], 1)
    return torch.from_numpy((flat - flat.mean(0)) / (flat.std(0) + 1e-8)).float()


def train(args, logs, model, directory):
    """Train and save `model` on `logs` (see `load_logs`); per epoch the roll-outs are permuted once for all tasks, and tasks are
    grouped at random.

    With --fresh-relabelling every epoch reads other roll-outs: fixed ones, some 500 per task, are learned by heart.
    """
    settings = loss_settings(args)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.vae_lr, fused=True)
    loop = Loop(
        directory, args.num_iters, args.log_interval, {"model": model, "optimizer": optimizer}, tensorboard=args.tensorboard,
        unit="epoch", save_every=args.save_interval,
    )  # fmt: skip

    def drawn(epoch):
        return VaeData(args, mix(args, *logs, "", *([epoch] if args.fresh_relabelling else [])))

    first = loop.step
    data = drawn(min(first, args.num_iters - 1))
    for done in loop.steps():
        epoch = done - 1
        if args.decay_lr:
            decay_learning_rates([optimizer], epoch, args.num_iters)
        if args.fresh_relabelling and epoch > first:
            data = drawn(epoch)
        parts = train_epoch(args, model, optimizer, data, settings, torch_generator(args.seed, "epoch", epoch))
        if loop.due:
            require_finite(parts["loss"], "the loss of the belief model", "--vae-lr")
            with loop.measuring():
                spread = measure_spread(model, data)
            loop.record(**parts, task_spread=spread)
    save_belief_model(directory, model)
    record = {key: value for key, value in loop.curve[-1].items() if key != "step"}
    write_json(directory / VAE_DONE, {**record, "provenance": provenance()})


def train_epoch(args, model, optimizer, data, settings, generator):
    """One pass over the roll-outs; returns the mean loss and its parts."""
    tasks, count = data.arrays["rewards"].shape[:2]
    sums, updates = {}, 0
    for chosen in torch.randperm(count, generator=generator).split(args.vae_batch_num_rollouts_per_task):
        for group in torch.randperm(tasks, generator=generator).split(args.tasks_batch_size):
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
