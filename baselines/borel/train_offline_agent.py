"""Stage 3: offline meta-RL. Turn the logs into hyper-states with a trained belief, and train DQN or SAC on them.

    python -m baselines.borel.train_offline_agent --env-type gridworld --transform-data-bamdp True \\
        --vae-model-name relabel__seed_0

`--transform-data-bamdp True` runs the encoder over the data and stores what it makes; later runs read it with False (the
default). Gridworld: 20 minutes on one core. The same command continues an interrupted run. Writes
results/<env_type>/log/<method>/bamdp-strict/seed_<s>.json and the policy in saves/.
"""

import copy
import dataclasses
import math

import numpy as np
import torch

from baselines.borel.beliefs import VAE_DONE, HyperCache, belief_rewards, hyper_states, load_belief_model, model_fingerprint
from baselines.borel.buffer import RolloutBuffer
from baselines.borel.data import task_directory
from baselines.borel.evaluate import conclude, measure, model_inputs, print_result, result_facts, result_file
from baselines.borel.hindsight_data_collection import load_agents
from baselines.borel.mixing import REPLAYED_POLICIES, Mixing, data_digests, data_stamps, load_logs, mix
from baselines.borel.problem import episode_returns, play
from baselines.borel.saved import save_policy
from baselines.borel.settings import (
    QUALITY,
    USUAL,
    VOLATILE,
    AgentSettings,
    MetaEvaluation,
    borel_parser,
    decay_learning_rates,
    dependent_run,
    next_command,
    parse,
)
from baselines.borel.train_single_agent import exploring
from src.evaluation.results import label
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import read_json
from src.run.flags import nonnegative_float, plain_name, positive_int
from src.run.loop import Loop
from src.run.seeding import torch_generator
from src.run.settings import setting

REFERENCE_AGENTS = 25  # all of the ant's would play 640,000 steps


@dataclasses.dataclass(frozen=True)
class HyperStates:
    """belief model and hyper-states"""

    vae_dir: str = setting(USUAL["models"], "main folder of belief models, below --output_dir")
    vae_model_name: str | None = setting(None, "which model (default: the only one there is)", plain_name)
    transform_data_bamdp: bool = setting(False, "make the hyper-states; False: read them")
    relabelled_data_dir: str = setting("data_bamdp", "folder of the hyper-states inside the data's", plain_name)
    belief_rewards: bool = setting(False, "rewards expected under the belief, not observed")
    num_belief_samples: int = setting(20, "draws from the belief per expected reward", positive_int)
    terminate_in_goal: bool = setting(False, "no value after a step that ends in the goal, as in the original")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """training"""

    use_cql: bool = setting(False, "add the CQL regulariser to SAC's critics")
    alpha_cql: float = setting(2.0, "its weight", nonnegative_float)
    num_iters: int = setting(1000, "iterations; tasks are drawn once in each", positive_int)
    rl_updates_per_iter: int = setting(1000, "updates per iteration", positive_int)
    meta_batch: int = setting(16, "tasks in an update, drawn with replacement", positive_int)
    decay_lr: bool = setting(False, "let the learning rates fall to 0 linearly")
    keep_best: bool = setting(False, "end with the policy that earned most on the training tasks in any evaluation (ours)")
    log_interval: int = setting(10, "iterations between two evaluations", positive_int)
    save_interval: int = setting(100, "iterations between two checkpoints", positive_int)


SETTINGS = (HyperStates, Mixing, AgentSettings, Schedule, MetaEvaluation)


def make_parser():
    return borel_parser(__doc__, SETTINGS)


@main_guard
def main(argv=None):
    run, hyper, mixing, agent, schedule, evaluation = parse(make_parser(), "train_offline_agent", SETTINGS, argv)
    if schedule.use_cql and agent.policy == "dqn":
        raise UserError("--use-cql True needs --policy sac")
    name, folder = find_model(run, hyper)
    model = load_belief_model(folder, run.problem, next_command(run, "train_vae_offline")).to(run.device)
    if hyper.belief_rewards and not model.config["decode_reward"]:
        raise UserError(f"--belief-rewards True needs a decoder of rewards, and {folder} was trained with --disable-decoder True")
    settings = read_json(folder / "config.json", "decode_state", "hindsight_relabelling", "max_rollouts_per_task", "env")
    check_rollouts(run.problem, folder, settings)
    ablation = find_ablation(mixing, evaluation.method, settings)
    mixed = {key: getattr(mixing, key) or settings.get(key) for key in ("policy_replaying", "hindsight_relabelling")}
    privileges = "simulator" if mixed["policy_replaying"] else "reward function" if mixed["hindsight_relabelling"] else "none"
    facts = result_facts(run, QUALITY, evaluation.method or "borel", ablation, privileges)
    directory = run.directory(run.agent_log_dir, "offline", label(facts), f"seed_{run.seed}")
    finished = run.resume and (directory / "finished.json").exists()
    agents = None if finished else load_reference_agents(run)  # all that is needed is looked at before the long part
    data = None if finished else RolloutBuffer.full(load_hyper_states(run, hyper, mixing, model, name))
    volatile = (*VOLATILE, "transform_data_bamdp")
    made_from = {**data_digests(run, mixing), "vae_model_sha256": model_fingerprint(model)}
    with dependent_run(run, directory, {"vae_model_name": name, **made_from}, volatile):
        if data is not None:
            result_file(run, evaluation, facts).unlink(missing_ok=True)
            trained, loop = train(run, agent, schedule, evaluation, model, data, directory)
            tasks = np.arange(*run.env.test_tasks)
            levels = single_task_returns(run, agents, tasks)
            conclude(run, evaluation, facts, model, trained, tasks, loop, schedule.rl_updates_per_iter, made_from, levels)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
    print_result(run, evaluation, facts)


def find_model(run, hyper):
    """Name and folder of the belief model. Raises UserError when none is named and there is not exactly one."""
    folder = run.directory(hyper.vae_dir, "vae")
    names = sorted(path.parent.name for path in folder.glob(f"*/{VAE_DONE}"))
    if hyper.vae_model_name is None and len(names) != 1:
        known = f"choose from {', '.join(names)}" if names else f"make one: {next_command(run, 'train_vae_offline')}"
        raise UserError(f"--vae-model-name is not given and {folder} holds {len(names)} belief models: {known}")
    name = hyper.vae_model_name or names[0]
    return name, folder / name


def check_rollouts(problem, folder, settings):
    """Raises UserError where the belief model in `folder` was trained on roll-outs of other K or H."""
    trained = settings["max_rollouts_per_task"], settings["env"]["max_episode_steps"]
    if trained != (problem.episodes, problem.horizon):
        raise UserError(
            f"{folder} holds a belief model of {trained[0]} episodes of {trained[1]} steps, this command says "
            f"{problem.episodes} of {problem.horizon}: change --max-rollouts-per-task or choose another --vae-model-name"
        )


def find_ablation(mixing, method, vae):
    """The ablation in tables: which of the remedies is missing; "none" under a `method` name of one's own.

    Raises UserError where the policy's data are to be mixed and the belief model's (its settings: `vae`) were not, or by rewards
    that cannot be moved.
    """
    if vae["decode_state"] and mixing.hindsight_relabelling:
        raise UserError("--hindsight-relabelling cannot mix tasks that differ in their dynamics; use --policy-replaying True")
    remedied = vae["hindsight_relabelling"] or vae.get("policy_replaying")
    missing = "" if remedied else "no_replaying" if vae["decode_state"] else "no_relabelling"
    if missing and (mixing.hindsight_relabelling or mixing.policy_replaying) and not method:
        word, flag = ("replaying", "policy-replaying") if vae["decode_state"] else ("relabelling", "hindsight-relabelling")
        raise UserError(f"the belief model had no {word}: give --{flag} False here too, or a --method name")
    return "none" if method else missing or "none"


# ------------------------------------------------------------------------------------------------------------- the data


def load_hyper_states(run, hyper, mixing, model, name):
    """The relabelled data of all training tasks: dict of states (N, R, T + 1, D), actions, rewards, terminated (N, R, T).

    The order is fixed: the logs are mixed first, then the encoder reads them, so that a belief never comes from
    rewards of another task than the one the policy is trained on.
    """
    tasks = range(*run.env.train_tasks)
    cache = HyperCache(run.logs / hyper.relabelled_data_dir / name, identity(run, hyper, mixing, model))
    with cache.locked():
        if hyper.transform_data_bamdp:
            if not run.resume:
                cache.clear()
            done = cache.done()
            if not set(tasks) <= done:
                rollouts = mix(run, mixing, *load_logs(run, mixing), " for the policy")
                for row, task in enumerate(tasks):
                    if task not in done:
                        arrays = {key: values[row] for key, values in rollouts.arrays().items()}
                        cache.write(task, transform(run, hyper, model, task, arrays))
        return cache.read(tasks)


def identity(run, hyper, mixing, model):
    """What the relabelled data depend on."""
    chosen = {key: getattr(mixing, key) for key in ("num_trajs_per_task", "hindsight_relabelling")}
    chosen |= {key: getattr(hyper, key) for key in ("belief_rewards", "terminate_in_goal")}
    if mixing.hindsight_relabelling or mixing.policy_replaying:
        chosen |= {"relabelled_episodes": mixing.relabelled_episodes, "seed": run.seed}
    if mixing.policy_replaying:
        chosen |= {"policy_replaying": True, "replaying_data_dir": mixing.replaying_data_dir}
        chosen |= {"num_replayed_policies": REPLAYED_POLICIES}
    if hyper.belief_rewards:
        chosen |= {"num_belief_samples": hyper.num_belief_samples, "seed": run.seed}
    return {**chosen, **data_stamps(run, mixing), "belief_model": model_fingerprint(model)}


def transform(run, hyper, model, task, arrays):
    """One task's roll-outs (R, T, ...) as numpy arrays -> tensors of the cache."""
    problem = run.problem
    states = hyper_states(model, problem, **arrays, device=run.device)
    rewards = torch.from_numpy(arrays["rewards"])
    if hyper.belief_rewards:
        beliefs = states[:, :-1, problem.observation_size :].to(run.device)
        inputs = {key: values.to(run.device) for key, values in model_inputs(problem, model, arrays).items()}
        generator = torch_generator(run.seed, "belief rewards", task)
        rewards = belief_rewards(model, beliefs, inputs, hyper.num_belief_samples, generator).cpu()
    terminated = torch.zeros(rewards.shape, dtype=torch.bool)
    if hyper.terminate_in_goal:
        reached = problem.success(task, arrays["next_obs"])
        if reached is None:
            raise UserError(f"--terminate-in-goal: {run.env_type} has no goal")
        terminated = torch.from_numpy(reached)
    return {"states": states, "actions": torch.from_numpy(arrays["actions"]), "rewards": rewards, "terminated": terminated}


# ------------------------------------------------------------------------------------------------------------- training


def train(run, settings, schedule, evaluation, model, data, directory):
    """Train the meta-agent (AgentSettings), evaluating as it goes, and save the policy; returns it, and the Loop."""
    generator, cql = torch_generator(run.seed, "meta-agent"), schedule.alpha_cql if schedule.use_cql else 0.0
    agent = settings.make(1, run.problem, data.arrays["states"].shape[-1], generator, run.device, cql)
    best = BestPolicy(agent.policy_network())
    loop = Loop(
        directory, schedule.num_iters, schedule.log_interval, {"agent": agent, "best": best}, tensorboard=run.tensorboard,
        unit="iteration", save_every=schedule.save_interval,
    )  # fmt: skip
    for done in loop.steps():
        if schedule.decay_lr:
            decay_learning_rates(agent.optimizers(), done - 1, schedule.num_iters)
        generator = torch_generator(run.seed, "iteration", done - 1)
        tasks = torch.randint(len(data.counts), (schedule.meta_batch,), generator=generator)
        losses = update_meta_agent(agent, data, tasks, schedule.rl_updates_per_iter, settings.batch_size, generator)
        if loop.due:
            require_finite(float(losses["critic_loss"]), "the critic's loss", settings.learning_rates)
            with loop.measuring():
                groups = {"train_return": np.arange(*run.env.train_tasks), "test_return": np.arange(*run.env.test_tasks)}
                returns = measure(run, evaluation, model, agent, groups)
            if schedule.keep_best:
                best.offer(returns["train_return"])
            loop.record(**returns, **{f"train/{key}": float(value) for key, value in losses.items()})
    if schedule.keep_best:
        best.put_back()
    save_policy(directory, run.problem, model, agent)
    return agent, loop


def load_reference_agents(run):
    """The agents whose logs are the data as one stack, or some REFERENCE_AGENTS of them evenly spaced; None without them.

    Raises UserError where they are not those of this problem.
    """
    train_tasks = range(*run.env.train_tasks)
    chosen = train_tasks[:: math.ceil(len(train_tasks) / REFERENCE_AGENTS)]
    if not all((task_directory(run.logs, task) / "agent.safetensors").exists() for task in chosen):
        return None
    return load_agents(run, chosen)


def single_task_returns(run, agents, task_ids):
    """How `agents`, a stack or None, fare on `task_ids`: {level: (tasks, K)}, means over the agents; {} without them."""
    if agents is None:
        return {}
    count = len(agents.policy_network().weights[0])
    actor = exploring(agents, count, torch_generator(run.seed, "single"), deterministic=True)
    played = play(run.problem, np.tile(task_ids, count), actor, (run.seed, "single-task agents"))
    returns = episode_returns(run.problem, played["rewards"]).reshape(count, len(task_ids), -1)
    return {"single_task_agents": returns.mean(0).tolist()}


def update_meta_agent(agent, buffer, tasks, updates, batch_size, generator):
    """One iteration's updates on hyper-states of `tasks`, pooled into one batch; returns the last losses."""
    for _ in range(updates):
        batch = buffer.draw(tasks, batch_size, generator)
        losses = agent.update(*(values.flatten(0, 1)[None].to(agent.device) for values in batch), generator)
    return losses


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
