"""The online variant, off-policy VariBAD: collect, train the belief and train the policy in turn.

    python -m baselines.borel.online_training --env-type gridworld

Per iteration a few training tasks are drawn, the current policy plays on each, and then belief and policy are updated on the
tasks of one meta-batch. The policy's buffer keeps the hyper-states of the time they were collected, unless --refresh-interval
is given. The same command continues an interrupted run. Writes results/<env_type>/online/borel-online/bamdp-strict/seed_<s>.json.
"""

from pathlib import Path

import numpy as np
import torch

from baselines.borel.beliefs import belief_rewards, hyper_states, vae_config
from baselines.borel.buffer import RolloutBuffer
from baselines.borel.evaluate import BeliefAgent, by_episode, evaluate, model_inputs, result_facts, returns_curve, save_result
from baselines.borel.problem import play, random_actions
from baselines.borel.settings import (
    VOLATILE,
    add_agent_flags,
    borel_parser,
    decay_learning_rates,
    learning_rates,
    make_agent,
    parse,
    resolved,
    run_folder,
)
from baselines.borel.train_offline_agent import update_meta_agent
from baselines.borel.train_vae_offline import (
    add_model_flags,
    belief_extras,
    loss_settings,
    make_model,
    standardised_tasks,
    vae_update,
)
from envs.gridworld import STEP_REWARD, GoalBelief
from src.evaluation.results import label, read_result, result_path
from src.run.config import fraction, natural, plain_name, positive_int, report_command
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import read_json, save_tensors, write_json
from src.run.loop import Loop
from src.run.seeding import numpy_generator, torch_generator

QUALITY = "online"  # there is no data set
PUBLISHED = {"condition_policy_on_state": True, "sample_embeddings": False, "fixed_latent_params": False}  # and nothing else


def make_parser():
    parser = borel_parser(__doc__)
    tasks = parser.add_argument_group("tasks (default: those of the settings file)")
    tasks.add_argument("--num-train-tasks", type=positive_int, help="shuffle all tasks, whatever the seed: so many train")
    tasks.add_argument("--num-eval-tasks", type=positive_int, help="and the last so many for evaluation")
    add_model_flags(parser)
    parser.set_defaults(vae_batch_num_rollouts_per_task=2)
    agent = add_agent_flags(parser, policy="sac", batch_size=256)
    agent.add_argument("--epsilon-start", type=fraction, default=1.0, help="DQN's share of random actions at first")
    agent.add_argument("--epsilon-end", type=fraction, default=0.1, help="and in the end")
    agent.add_argument("--epsilon-iters", type=positive_int, default=1000, help="iterations over which it falls")
    agent.add_argument("--switch-to-belief-reward", type=natural,
                       help="iteration from which rewards expected under the belief replace observed ones")  # fmt: skip
    agent.add_argument("--oracle-belief-reward", action="boolean", default=False, help="by the exact belief (gridworld)")
    agent.add_argument("--num-belief-samples", type=positive_int, default=40, help="draws from the belief per expected reward")
    for name, value in PUBLISHED.items():
        agent.add_argument(
            f"--{name.replace('_', '-')}", action="boolean", default=value, help="published; no other value is taken"
        )
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--num-iters", type=positive_int, default=1000, help="iterations")
    schedule.add_argument("--num-init-rollouts-pool", type=positive_int, default=5, help="random roll-outs per task first")
    schedule.add_argument("--num-tasks-sample", type=positive_int, default=5, help="tasks played per iteration")
    schedule.add_argument("--num-rollouts-per-iter", type=positive_int, default=5, help="roll-outs on each of them")
    schedule.add_argument("--pretrain-len", type=natural, default=0, help="updates of the belief before the first iteration")
    schedule.add_argument("--rl-updates-per-iter", type=positive_int, default=2000, help="updates of the policy per iteration")
    schedule.add_argument("--vae-updates-per-iter", type=positive_int, default=20, help="updates of the belief per iteration")
    schedule.add_argument("--meta-batch", type=positive_int, default=16, help="tasks in an update, drawn with replacement")
    schedule.add_argument("--policy-buffer-size", type=positive_int, default=1_000_000, help="transitions kept per task")
    schedule.add_argument("--vae-buffer-size", type=positive_int, default=100_000, help="the same for the belief")
    schedule.add_argument("--refresh-interval", type=positive_int,
                          help="iterations after which stored hyper-states are computed anew (default: never)")  # fmt: skip
    schedule.add_argument("--decay-lr", action="boolean", default=False, help="let the learning rates fall to 0 linearly")
    schedule.add_argument("--log-interval", type=positive_int, default=20, help="iterations between two evaluations")
    schedule.add_argument("--save-interval", type=positive_int, default=100, help="iterations between two checkpoints")
    schedule.add_argument("--eval-deterministic", action="boolean", default=True, help="evaluate the mean policy")
    schedule.add_argument("--eval-rollouts", type=positive_int, default=1, help="roll-outs per evaluation task")
    output = parser.add_argument_group("output")
    output.add_argument("--method", type=plain_name, default="borel-online", help="name in tables")
    output.add_argument("--results-log-dir", default="results", help="main folder of result files, below --output_dir")
    return parser


@main_guard
def main(argv=None):
    args = parse(make_parser(), "online_training", argv)
    for name, value in PUBLISHED.items():
        if vars(args).pop(name) != value:
            raise UserError(
                f"--{name.replace('_', '-')} {not value} is not offered: leave it out, the policy reads s, μ and log σ²"
            )
    if args.disable_decoder and args.switch_to_belief_reward is not None and not args.oracle_belief_reward:
        raise UserError("--switch-to-belief-reward needs a decoder of rewards: leave --disable-decoder True out")
    if args.oracle_belief_reward and args.env_type != "gridworld":
        raise UserError("--oracle-belief-reward True: only the gridworld has an exact belief")
    if args.refresh_interval and args.policy_buffer_size != args.vae_buffer_size:
        raise UserError("--refresh-interval needs the same roll-outs in both buffers: make --policy-buffer-size and "
                        "--vae-buffer-size equal")  # fmt: skip
    tasks = split_tasks(args)
    if args.num_tasks_sample > len(tasks["train"]):
        raise UserError(
            f"--num-tasks-sample {args.num_tasks_sample} is more than the {len(tasks['train'])} training tasks: lower it"
        )
    vae_config(args, np.zeros(0))  # refused, if at all, before anything is written
    facts = result_facts(args, QUALITY, args.method, "none", "task parameters" if args.oracle_belief_reward else "none")
    method = label(facts)
    directory = run_folder(args, args.agent_log_dir, "online", method, f"seed_{args.seed}")
    result = result_path(args.output_dir, {"env_type": args.env_type, **facts}, args.results_log_dir)
    with run_directory(directory, resolved(args), args.resume, VOLATILE):
        check_split(directory / "split.json", {name: ids.tolist() for name, ids in tasks.items()})
        if not (directory / "finished.json").exists():
            Online(args, tasks, directory).train(facts)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
    returns = np.mean(read_result(result)["returns"], axis=0)
    episodes = ", ".join(f"{value:.2f}" for value in returns)
    follow = report_command(Path(args.output_dir, args.results_log_dir))
    print(f"{method}: mean return by episode {episodes}, sum {returns.sum():.2f}; result in {result}; next: {follow}")


def split_tasks(args):
    """Ids of the training and of the evaluation tasks: apart, or the same where both are all there are or the settings say so.

    The shuffle does not depend on --seed: results of several seeds belong to the same tasks.
    """
    if args.num_train_tasks is None and args.num_eval_tasks is None:
        return {"train": np.arange(*args.env.train_tasks), "eval": np.arange(*args.env.test_tasks)}
    train, total = args.num_train_tasks or 0, args.problem.num_tasks
    number = args.num_eval_tasks or total - train
    if train == number == total:
        return {"train": np.arange(total), "eval": np.arange(total)}
    if not train or not number or train + number > total:
        raise UserError(f"--num-train-tasks {train} and --num-eval-tasks {number} must be given and not exceed {total} tasks, "
                        f"or both be {total}: all for both")  # fmt: skip
    order = numpy_generator(0, "split").permutation(total)
    return {"train": np.sort(order[:train]), "eval": np.sort(order[-number:])}


def check_split(path, split):
    """Write the split, or raise UserError where a run from when it depended on the seed has another one."""
    if path.exists() and read_json(path) != split:
        raise UserError(f"{path.parent} holds a run with other tasks: pass --no-resume to replace it")
    write_json(path, split)


class Online:
    """A run: belief model, policy, the two buffers, and what has been measured."""

    def __init__(self, args, tasks, directory):
        self.args, self.problem, self.tasks, self.directory = args, args.problem, tasks, directory
        count, steps = len(tasks["train"]), self.problem.steps
        self.policy_buffer = RolloutBuffer(count, max(1, args.policy_buffer_size // steps), steps)
        self.vae_buffer = RolloutBuffer(count, max(1, args.vae_buffer_size // steps), steps)
        rows = np.arange(count)
        actor = random_actions(self.problem, numpy_generator(args.seed, "random"))
        played = self.play(rows, args.num_init_rollouts_pool, actor, "random")
        self.model = make_model(args, played["rewards"])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.vae_lr, fused=True)
        size = self.problem.observation_size + 2 * args.task_embedding_size
        self.agent = make_agent(args, 1, size, torch_generator(args.seed, "meta-agent"))
        self.loss_settings = loss_settings(args)
        self.task_targets = standardised_tasks(self.problem)[tasks["train"]] if args.decode_task else None
        self.loop = Loop(
            directory, args.num_iters, args.log_interval, tensorboard=args.tensorboard, unit="iteration",
            save_every=args.save_interval, parts={
                "model": self.model, "optimizer": self.optimizer, "agent": self.agent, "policy_buffer": self.policy_buffer,
                "vae_buffer": self.vae_buffer,
            },
        )  # fmt: skip
        if not self.loop.step:
            self.keep(rows, played, 0)
            for update in range(args.pretrain_len):
                generator = torch_generator(args.seed, "pretrain", update)
                self.update_belief(torch.randint(count, (args.meta_batch,), generator=generator), generator)

    def play(self, rows, number, actor, name):
        """`number` roll-outs on each training task in `rows` from the evaluation start: dict of arrays (A, number, T, ...)."""
        played = play(self.problem, np.repeat(self.tasks["train"][rows], number), actor, (self.args.seed, "online", name))
        return {key: values.reshape(len(rows), number, *values.shape[1:]) for key, values in played.items()}

    def keep(self, rows, played, iteration):
        """Put what was played into both buffers, as hyper-states of the present belief into the policy's."""
        arrays = {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in played.items() if key != "success"}
        self.vae_buffer.add(rows, {**arrays, **belief_extras(self.args, played["next_obs"])})
        flat = {key: played[key].reshape(-1, *played[key].shape[2:]) for key in ("obs", "actions", "rewards", "next_obs")}
        states = hyper_states(self.model, self.problem, **flat, device=self.args.device)
        switch = self.args.switch_to_belief_reward
        rewards = torch.from_numpy(flat["rewards"])
        if switch is not None and iteration >= switch:
            rewards = self.expected_rewards(flat, states, iteration)
        shape = arrays["rewards"].shape[:2]
        stored = {"states": states, "actions": torch.from_numpy(flat["actions"]), "rewards": rewards}
        self.policy_buffer.add(rows, {key: values.unflatten(0, shape) for key, values in stored.items()})

    def expected_rewards(self, flat, states, iteration):
        """Rewards (B, T) expected under the belief before each step: the model's, or the exact one."""
        if self.args.oracle_belief_reward:
            return torch.from_numpy(oracle_rewards(flat["next_obs"], flat["rewards"]))
        beliefs = states[:, :-1, self.problem.observation_size :].to(self.args.device)
        inputs = {key: values.to(self.args.device) for key, values in model_inputs(self.problem, self.model, flat).items()}
        generator = torch_generator(self.args.seed, "belief rewards", iteration)
        return belief_rewards(self.model, beliefs, inputs, self.args.num_belief_samples, generator).cpu()

    def update_belief(self, rows, generator):
        """One update of the belief model on random roll-outs of the tasks in `rows`; returns the losses."""
        number = self.args.vae_batch_num_rollouts_per_task
        drawn = self.vae_buffer.draw_rollouts(rows, number, generator)
        batch = {key: values.to(self.args.device) for key, values in drawn.items()}
        if self.task_targets is not None:
            batch["tasks"] = self.task_targets[rows].repeat_interleave(number, 0).to(self.args.device)
        return vae_update(self.model, self.optimizer, batch, self.loss_settings, generator)

    def iterate(self, iteration):
        """Collect, update belief and policy; returns the last losses of both."""
        args, count = self.args, len(self.tasks["train"])
        generator = torch_generator(args.seed, "iteration", iteration)
        rows = torch.randperm(count, generator=generator)[: args.num_tasks_sample].numpy()
        progress = min(1.0, iteration / args.epsilon_iters)
        epsilon = args.epsilon_start + progress * (args.epsilon_end - args.epsilon_start)
        actor = BeliefAgent(self.model, self.agent, deterministic=False, generator=generator, epsilon=epsilon)
        self.keep(rows, self.play(rows, args.num_rollouts_per_iter, actor, iteration), iteration)
        meta_batch = torch.randint(count, (args.meta_batch,), generator=generator)
        losses = {f"train/{key}": value for key, value in
                  update_meta_agent(args, self.agent, self.policy_buffer, meta_batch, generator).items()}  # fmt: skip
        for _ in range(args.vae_updates_per_iter):
            parts = self.update_belief(meta_batch, generator)
        if args.refresh_interval and (iteration + 1) % args.refresh_interval == 0:
            self.refresh()
        return {**losses, **{f"belief/{key}": value for key, value in parts.items()}}

    def refresh(self):
        """Hyper-states of the stored roll-outs by the present encoder; the rewards stay those of the time of collection."""
        raw, stored = self.vae_buffer.arrays, self.policy_buffer.arrays["states"]
        for row, filled in enumerate(self.vae_buffer.filled.tolist()):
            rollouts = {key: raw[key][row, :filled].numpy() for key in ("obs", "actions", "rewards", "next_obs")}
            stored[row, :filled] = hyper_states(self.model, self.problem, **rollouts, device=self.args.device)

    def measure(self):
        """Returns on the training and the test tasks, as that of train_offline_agent."""
        args, values = self.args, {}
        for series, ids in (("train_return", self.tasks["train"]), ("test_return", self.tasks["eval"])):
            options = ids, args.eval_rollouts, args.seed, args.eval_deterministic
            values |= by_episode(series, evaluate(self.problem, self.model, self.agent, *options)["returns"])
        return values

    def train(self, facts):
        """All iterations, then the final evaluation, the result file, and finished.json last."""
        args, directory, loop = self.args, self.directory, self.loop
        for done in loop.steps():
            if args.decay_lr:
                decay_learning_rates([self.optimizer, *self.agent.optimizers()], done - 1, args.num_iters)
            losses = self.iterate(done - 1)
            if loop.due:
                losses = {key: float(value) for key, value in losses.items()}
                require_finite(sum(losses.values()), "a loss", f"--vae-lr, {learning_rates(args)}")
                with loop.measuring():
                    returns = self.measure()
                loop.record(**returns, **losses)
        save_tensors(directory / "policy.safetensors", self.agent.policy_network().state_dict())
        save_tensors(directory / "belief_model.safetensors", self.model.state_dict())
        write_json(directory / "belief_model.json", self.model.config)
        ids = self.tasks["eval"]
        options = ids, args.eval_rollouts, args.seed, args.eval_deterministic
        final = evaluate(self.problem, self.model, self.agent, *options, pictures=True)
        training = {"gradient_steps": args.num_iters * args.rl_updates_per_iter, "wall_clock_s": round(loop.seconds, 1)}
        save_result(args, facts, ids, final, returns_curve(loop, args), training, {}, directory)
        write_json(directory / "finished.json", {"returns": np.mean(final["returns"], axis=0).tolist()})


def oracle_rewards(next_obs, rewards):
    """Gridworld: expected reward of entering each cell under the exact belief before the step, (B, T) float32.

    In a cell that may be the goal (1 + r·(n − 1)) / n for n possible goals and r = −0.1; r elsewhere.
    """
    belief = GoalBelief(len(rewards))
    expected = np.empty_like(rewards)
    for step in range(rewards.shape[1]):
        here = (next_obs[:, step, None, :2] == belief.goals).all(-1) & belief.possible
        expected[:, step] = np.where(here.any(-1), belief.reward(), STEP_REWARD)
        belief.update(next_obs[:, step], rewards[:, step])
    return expected


if __name__ == "__main__":
    main()
