"""Stage 3: offline meta-RL. Turn the logs into hyper-states with a trained belief, and train DQN or SAC on them.

    python -m baselines.borel.train_offline_agent --env-type gridworld --transform-data-bamdp True \\
        --vae-model-name relabel__seed_0

`--transform-data-bamdp True` runs the encoder over the data and stores what it makes; later runs read it with False (the
default). Gridworld: 20 minutes on one core. The same command continues an interrupted run. Writes
results/<env_type>/log/<method>/bamdp-strict/seed_<s>.json and the policy in saves/.
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch

from baselines.borel.beliefs import VAE_DONE, HyperCache, belief_rewards, hyper_states, load_belief_model, model_fingerprint
from baselines.borel.buffer import RolloutBuffer
from baselines.borel.data import data_directory, read_document, task_directory
from baselines.borel.evaluate import by_episode, evaluate, model_inputs, result_facts, returns_curve, save_result
from baselines.borel.hindsight_data_collection import load_agents
from baselines.borel.mixing import add_mixing_flags, data_digests, data_stamps, load_logs, mix
from baselines.borel.problem import episode_returns, play
from baselines.borel.settings import (
    QUALITY,
    USUAL,
    VOLATILE,
    add_agent_flags,
    borel_parser,
    data_name,
    decay_learning_rates,
    dependent_run,
    learning_rates,
    make_agent,
    next_command,
    parse,
    resolved,
    run_folder,
)
from baselines.borel.train_single_agent import exploring
from src.evaluation.results import label, read_result, result_path
from src.run.config import nonnegative_float, plain_name, positive_int, report_command
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import save_tensors, write_json
from src.run.loop import Loop
from src.run.seeding import torch_generator

REFERENCE_AGENTS = 25  # all of the ant's would play 640,000 steps


def make_parser():
    parser = borel_parser(__doc__)
    belief = parser.add_argument_group("belief model")
    belief.add_argument("--vae-dir", default=USUAL["models"], help="main folder of belief models, below --output_dir")
    belief.add_argument("--vae-model-name", type=plain_name, help="which model (default: the only one there is)")
    data = parser.add_argument_group("data")
    add_mixing_flags(data)
    data.add_argument("--transform-data-bamdp", action="boolean", default=False, help="make the hyper-states; False: read them")
    data.add_argument(
        "--relabelled-data-dir", type=plain_name, default="data_bamdp", help="folder of the hyper-states inside the data's"
    )
    data.add_argument("--belief-rewards", action="boolean", default=False, help="rewards expected under the belief, not observed")
    data.add_argument("--num-belief-samples", type=positive_int, default=20, help="draws from the belief per expected reward")
    data.add_argument("--terminate-in-goal", action="boolean", default=False,
                      help="no value after a step that ends in the goal, as in the original")  # fmt: skip
    agent = add_agent_flags(parser, policy="sac", batch_size=256)
    agent.add_argument("--use-cql", action="boolean", default=False, help="add the CQL regulariser to SAC's critics")
    agent.add_argument("--alpha-cql", type=nonnegative_float, default=2.0, help="its weight")
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--num-iters", type=positive_int, default=1000, help="iterations; tasks are drawn once in each")
    schedule.add_argument("--rl-updates-per-iter", type=positive_int, default=1000, help="updates per iteration")
    schedule.add_argument("--meta-batch", type=positive_int, default=16, help="tasks in an update, drawn with replacement")
    schedule.add_argument("--decay-lr", action="boolean", default=False, help="let the learning rates fall to 0 linearly")
    schedule.add_argument("--keep-best", action="boolean", default=False,
                          help="end with the policy that earned most on the training tasks in any evaluation (ours)")  # fmt: skip
    schedule.add_argument("--log-interval", type=positive_int, default=10, help="iterations between two evaluations")
    schedule.add_argument("--save-interval", type=positive_int, default=100, help="iterations between two checkpoints")
    schedule.add_argument("--eval-deterministic", action="boolean", default=True, help="evaluate the mean policy")
    schedule.add_argument("--eval-rollouts", type=positive_int, default=1,
                          help="roll-outs per evaluation task; more than one where starts or actions are random")  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument("--method", type=plain_name, help="name in tables (default: borel)")
    output.add_argument("--results-log-dir", default="results", help="main folder of result files, below --output_dir")
    return parser


@main_guard
def main(argv=None):
    args = parse(make_parser(), "train_offline_agent", argv)
    if args.use_cql and args.policy == "dqn":
        raise UserError("--use-cql True needs --policy sac")
    name, folder = find_model(args)
    model = load_belief_model(folder, args.problem, next_command(args, "train_vae_offline")).to(args.device)
    if args.belief_rewards and not model.config["decode_reward"]:
        raise UserError(f"--belief-rewards True needs a decoder of rewards, and {folder} was trained with --disable-decoder True")
    settings = read_document(folder / "config.json", "decode_state", "hindsight_relabelling", "max_rollouts_per_task", "env")
    check_rollouts(args.problem, folder, settings)
    ablation = find_ablation(args, settings)
    mixing = {key: getattr(args, key) or settings.get(key) for key in ("policy_replaying", "hindsight_relabelling")}
    privileges = "simulator" if mixing["policy_replaying"] else "reward function" if mixing["hindsight_relabelling"] else "none"
    facts = result_facts(args, QUALITY, args.method or "borel", ablation, privileges)
    method = label(facts)
    directory = run_folder(args, args.agent_log_dir, "offline", method, f"seed_{args.seed}")
    result = result_path(args.output_dir, {"env_type": args.env_type, **facts}, args.results_log_dir)
    finished = args.resume and (directory / "finished.json").exists()
    agents = None if finished else load_reference_agents(args)  # all that is needed is looked at before the long part
    data = None if finished else RolloutBuffer.full(load_hyper_states(args, model, name))
    volatile = (*VOLATILE, "transform_data_bamdp")
    made_from = {**data_digests(args), "vae_model_sha256": model_fingerprint(model)}
    with dependent_run(args, directory, {**resolved(args), "vae_model_name": name}, made_from, volatile):
        if data is not None:
            result.unlink(missing_ok=True)
            train(args, model, agents, data, directory, facts, made_from)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
    returns = np.mean(read_result(result)["returns"], axis=0)
    episodes = ", ".join(f"{value:.2f}" for value in returns)
    follow = report_command(Path(args.output_dir, args.results_log_dir))
    print(f"{method}: mean return by episode {episodes}, sum {returns.sum():.2f}; result in {result}; next: {follow}")


def find_model(args):
    """Name and folder of the belief model. Raises UserError when none is named and there is not exactly one."""
    folder = run_folder(args, args.vae_dir, "vae")
    names = sorted(path.parent.name for path in folder.glob(f"*/{VAE_DONE}"))
    if args.vae_model_name is None and len(names) != 1:
        known = f"choose from {', '.join(names)}" if names else f"make one: {next_command(args, 'train_vae_offline')}"
        raise UserError(f"--vae-model-name is not given and {folder} holds {len(names)} belief models: {known}")
    name = args.vae_model_name or names[0]
    return name, folder / name


def check_rollouts(problem, folder, settings):
    """Raises UserError where the belief model in `folder` was trained on roll-outs of other K or H."""
    trained = settings["max_rollouts_per_task"], settings["env"]["max_episode_steps"]
    if trained != (problem.episodes, problem.horizon):
        raise UserError(
            f"{folder} holds a belief model of {trained[0]} episodes of {trained[1]} steps, this command says "
            f"{problem.episodes} of {problem.horizon}: change --max-rollouts-per-task or choose another --vae-model-name"
        )


def find_ablation(args, vae):
    """The ablation in tables: which of the remedies is missing; "none" under a --method name of one's own.

    Raises UserError where the policy's data are to be mixed and the belief model's were not, or by rewards that
    cannot be moved.
    """
    if vae["decode_state"] and args.hindsight_relabelling:
        raise UserError("--hindsight-relabelling cannot mix tasks that differ in their dynamics; use --policy-replaying True")
    remedied = vae["hindsight_relabelling"] or vae.get("policy_replaying")
    missing = "" if remedied else "no_replaying" if vae["decode_state"] else "no_relabelling"
    if missing and (args.hindsight_relabelling or args.policy_replaying) and not args.method:
        word, flag = ("replaying", "policy-replaying") if vae["decode_state"] else ("relabelling", "hindsight-relabelling")
        raise UserError(f"the belief model had no {word}: give --{flag} False here too, or a --method name")
    return "none" if args.method else missing or "none"


# ------------------------------------------------------------------------------------------------------------- the data


def load_hyper_states(args, model, name):
    """The relabelled data of all training tasks: dict of states (N, R, T + 1, D), actions, rewards, terminated (N, R, T).

    The order is fixed: the logs are mixed first, then the encoder reads them, so that a belief never comes from
    rewards of another task than the one the policy is trained on.
    """
    tasks = range(*args.env.train_tasks)
    source = data_directory(args, data_name(args, args.data_dir))
    cache = HyperCache(source / args.relabelled_data_dir / name, identity(args, model))
    with cache.locked():
        if args.transform_data_bamdp:
            if not args.resume:
                cache.clear()
            done = cache.done()
            if not set(tasks) <= done:
                rollouts = mix(args, *load_logs(args), " for the policy")
                for row, task in enumerate(tasks):
                    if task not in done:
                        arrays = {key: values[row] for key, values in rollouts.arrays().items()}
                        cache.write(task, transform(args, model, task, arrays))
        return cache.read(tasks)


def identity(args, model):
    """What the relabelled data depend on."""
    keys = ("num_trajs_per_task", "hindsight_relabelling", "belief_rewards", "terminate_in_goal")
    chosen = {key: getattr(args, key) for key in keys}
    if args.hindsight_relabelling:
        chosen |= {key: getattr(args, key) for key in ("relabelling_fraction", "relabelled_episodes", "seed")}
    if args.policy_replaying:
        keys = ("policy_replaying", "replaying_data_dir", "num_replayed_policies", "relabelled_episodes", "seed")
        chosen |= {key: getattr(args, key) for key in keys}
    if args.belief_rewards:
        chosen |= {"num_belief_samples": args.num_belief_samples, "seed": args.seed}
    return {**chosen, **data_stamps(args), "belief_model": model_fingerprint(model)}


def transform(args, model, task, arrays):
    """One task's roll-outs (R, T, ...) as numpy arrays -> tensors of the cache."""
    problem = args.problem
    hyper = hyper_states(model, problem, **arrays, device=args.device)
    rewards = torch.from_numpy(arrays["rewards"])
    if args.belief_rewards:
        beliefs = hyper[:, :-1, problem.observation_size :].to(args.device)
        inputs = {key: values.to(args.device) for key, values in model_inputs(problem, model, arrays).items()}
        generator = torch_generator(args.seed, "belief rewards", task)
        rewards = belief_rewards(model, beliefs, inputs, args.num_belief_samples, generator).cpu()
    terminated = torch.zeros(rewards.shape, dtype=torch.bool)
    if args.terminate_in_goal:
        reached = problem.success(task, arrays["next_obs"])
        if reached is None:
            raise UserError(f"--terminate-in-goal: {args.env_type} has no goal")
        terminated = torch.from_numpy(reached)
    return {"states": hyper, "actions": torch.from_numpy(arrays["actions"]), "rewards": rewards, "terminated": terminated}


# ------------------------------------------------------------------------------------------------------------- training


def train(args, model, agents, data, directory, facts, made_from):
    """Train the meta-agent, evaluating as it goes; writes policy, result file and, last, finished.json.

    agents: see `load_reference_agents`.
    """
    generator = torch_generator(args.seed, "meta-agent")
    agent = make_agent(args, 1, data.arrays["states"].shape[-1], generator, cql=args.alpha_cql if args.use_cql else 0.0)
    best = BestPolicy(agent.policy_network())
    loop = Loop(
        directory, args.num_iters, args.log_interval, {"agent": agent, "best": best}, tensorboard=args.tensorboard,
        unit="iteration", save_every=args.save_interval,
    )  # fmt: skip
    for done in loop.steps():
        if args.decay_lr:
            decay_learning_rates(agent.optimizers(), done - 1, args.num_iters)
        losses = train_iteration(args, agent, data, torch_generator(args.seed, "iteration", done - 1))
        if loop.due:
            require_finite(float(losses["critic_loss"]), "the critic's loss", learning_rates(args))
            with loop.measuring():
                returns = measure(args, model, agent)
            if args.keep_best:
                best.offer(returns["train_return"])
            loop.record(**returns, **{f"train/{key}": float(value) for key, value in losses.items()})
    if args.keep_best:
        best.put_back()
    save_tensors(directory / "policy.safetensors", agent.policy_network().state_dict())
    tasks = np.arange(*args.env.test_tasks)
    final = evaluate(args.problem, model, agent, tasks, args.eval_rollouts, args.seed, args.eval_deterministic, pictures=True)
    steps = args.num_iters * args.rl_updates_per_iter
    training = {"gradient_steps": steps, "wall_clock_s": round(loop.seconds, 1)}
    levels = single_task_returns(args, agents, tasks)
    save_result(args, facts, tasks, final, returns_curve(loop, args), training, made_from, directory, levels)
    write_json(directory / "finished.json", {"returns": np.mean(final["returns"], axis=0).tolist()})


def load_reference_agents(args):
    """The agents whose logs are the data as one stack, or some REFERENCE_AGENTS of them evenly spaced; None without them.

    Raises UserError where they are not those of this problem.
    """
    source, train_tasks = data_directory(args, data_name(args, args.data_dir)), range(*args.env.train_tasks)
    chosen = train_tasks[:: math.ceil(len(train_tasks) / REFERENCE_AGENTS)]
    if not all((task_directory(source, task) / "agent.safetensors").exists() for task in chosen):
        return None
    return load_agents(args, chosen)


def single_task_returns(args, agents, task_ids):
    """How `agents`, a stack or None, fare on `task_ids`: {level: (tasks, K)}, means over the agents; {} without them."""
    if agents is None:
        return {}
    count = len(agents.policy_network().weights[0])
    actor = exploring(agents, count, torch_generator(args.seed, "single"), deterministic=True)
    played = play(args.problem, np.tile(task_ids, count), actor, (args.seed, "single-task agents"))
    returns = episode_returns(args.problem, played["rewards"]).reshape(count, len(task_ids), -1)
    return {"single_task_agents": returns.mean(0).tolist()}


def train_iteration(args, agent, data, generator):
    """Draw tasks with replacement, then update on them; returns the last losses."""
    tasks = torch.randint(len(data.counts), (args.meta_batch,), generator=generator)
    return update_meta_agent(args, agent, data, tasks, generator)


def update_meta_agent(args, agent, buffer, tasks, generator):
    """One iteration's updates on hyper-states of `tasks`, pooled into one batch; returns the last losses."""
    for _ in range(args.rl_updates_per_iter):
        batch = buffer.draw(tasks, args.batch_size, generator, args.bootstrap_rollout_end)
        losses = agent.update(*(values.flatten(0, 1)[None].to(agent.device) for values in batch), generator)
    return losses


def measure(args, model, agent):
    """Returns on the training and the test tasks, of a policy in training: means, by episode, and the sums over the episodes."""
    groups = {"train_return": args.env.train_tasks, "test_return": args.env.test_tasks}
    options = args.eval_rollouts, args.seed, args.eval_deterministic
    known = {  # they may be the same
        tasks: evaluate(args.problem, model, agent, np.arange(*tasks), *options)["returns"] for tasks in set(groups.values())
    }
    return {name: value for series, tasks in groups.items() for name, value in by_episode(series, known[tasks]).items()}


class BestPolicy:
    """The weights of a policy network at the highest score so far, as a part of a Loop."""

    def __init__(self, network):
        self.network, self.score, self.weights = network, -math.inf, None

    def offer(self, score):
        """Keep the present weights where no former score is higher."""
        if score >= self.score:
            self.score, self.weights = score, copy.deepcopy(self.network.state_dict())

    def put_back(self):
        self.network.load_state_dict(self.weights)

    def state_dict(self):
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state):
        self.score, self.weights = state["score"], state["weights"]


if __name__ == "__main__":
    main()
