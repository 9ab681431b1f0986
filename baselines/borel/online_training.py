"""The online variant, off-policy VariBAD: collect, train the belief and train the policy in turn.

    python -m baselines.borel.online_training --env-type gridworld

Per iteration a few training tasks are drawn, the current policy plays on each, and then belief and policy are updated on the
tasks of one meta-batch. The policy's buffer keeps the hyper-states of the time they were collected, unless --refresh-interval
is given. The same command continues an interrupted run. Writes results/<env_type>/online/borel-online/bamdp-strict/seed_<s>.json.
"""

import dataclasses

import numpy as np
import torch

from baselines.borel.beliefs import belief_rewards, hyper_states, vae_config
from baselines.borel.buffer import RolloutBuffer
from baselines.borel.data import KEYS
from baselines.borel.evaluate import BeliefAgent, conclude, measure, model_inputs, print_result, result_facts
from baselines.borel.problem import play, random_actions
from baselines.borel.saved import save_policy
from baselines.borel.settings import VOLATILE, AgentSettings, MetaEvaluation, borel_parser, decay_learning_rates, parse
from baselines.borel.train_offline_agent import update_meta_agent
from baselines.borel.train_vae_offline import belief_extras, check_loss, make_model, standardised_tasks, vae_update
from baselines.borel.vae import BeliefSettings, LossSettings
from envs.gridworld import STEP_REWARD, GoalBelief
from src.evaluation.results import label
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard, require_finite
from src.run.files import read_json, write_json
from src.run.flags import natural, positive_int
from src.run.loop import Loop
from src.run.seeding import numpy_generator, torch_generator
from src.run.settings import setting

QUALITY = "online"  # there is no data set
EPSILON_START, EPSILON_END = 1.0, 0.1  # DQN's share of random actions


@dataclasses.dataclass(frozen=True)
class Split:
    """tasks (default: those of the settings file)"""

    num_train_tasks: int | None = setting(None, "shuffle all tasks, whatever the seed: so many train", positive_int)
    num_eval_tasks: int | None = setting(None, "and the last so many for evaluation", positive_int)


@dataclasses.dataclass(frozen=True)
class Published:
    """published; no other value is taken"""

    condition_policy_on_state: bool = setting(True, "the policy reads s")
    sample_embeddings: bool = setting(False, "it reads μ and log σ², not a sample")
    fixed_latent_params: bool = setting(False, "they change with every step")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """schedule"""

    epsilon_iters: int = setting(1000, "iterations in which DQN's share of random actions falls from 1 to 0.1", positive_int)
    switch_to_belief_reward: int | None = setting(
        None, "iteration from which rewards expected under the belief replace observed ones", natural
    )
    oracle_belief_reward: bool = setting(False, "by the exact belief (gridworld)")
    num_belief_samples: int = setting(40, "draws from the belief per expected reward", positive_int)
    num_iters: int = setting(1000, "iterations", positive_int)
    num_init_rollouts_pool: int = setting(5, "random roll-outs per task first", positive_int)
    num_tasks_sample: int = setting(5, "tasks played per iteration", positive_int)
    num_rollouts_per_iter: int = setting(5, "roll-outs on each of them", positive_int)
    pretrain_len: int = setting(0, "updates of the belief before the first iteration", natural)
    rl_updates_per_iter: int = setting(2000, "updates of the policy per iteration", positive_int)
    vae_updates_per_iter: int = setting(20, "updates of the belief per iteration", positive_int)
    meta_batch: int = setting(16, "tasks in an update, drawn with replacement", positive_int)
    policy_buffer_size: int = setting(1_000_000, "transitions kept per task", positive_int)
    vae_buffer_size: int = setting(100_000, "the same for the belief", positive_int)
    refresh_interval: int | None = setting(
        None, "iterations after which stored hyper-states are computed anew (default: never)", positive_int
    )
    decay_lr: bool = setting(False, "let the learning rates fall to 0 linearly")
    log_interval: int = setting(20, "iterations between two evaluations", positive_int)
    save_interval: int = setting(100, "iterations between two checkpoints", positive_int)


SETTINGS = (Split, BeliefSettings, LossSettings, AgentSettings, Schedule, MetaEvaluation, Published)


def make_parser():
    parser = borel_parser(__doc__, SETTINGS)
    parser.set_defaults(vae_batch_num_rollouts_per_task=2, method="borel-online")
    return parser


@main_guard
def main(argv=None):
    unsaved = [field.name for field in dataclasses.fields(Published)]
    run, split, *chosen, published = parse(make_parser(), "online_training", SETTINGS, argv, unsaved)
    belief, loss, _, schedule, evaluation = chosen
    for name in unsaved:
        if getattr(published, name) != getattr(Published, name):
            flag = f"--{name.replace('_', '-')} {getattr(published, name)}"
            raise UserError(f"{flag} is not offered: leave it out, the policy reads s, μ and log σ²")
    check_loss(belief, loss)
    check(run, belief, schedule)
    tasks = split_tasks(run, split)
    if schedule.num_tasks_sample > len(tasks["train"]):
        raise UserError(
            f"--num-tasks-sample {schedule.num_tasks_sample} is more than the {len(tasks['train'])} training tasks: lower it"
        )
    privileges = "task parameters" if schedule.oracle_belief_reward else "none"
    facts = result_facts(run, QUALITY, evaluation.method, "none", privileges)
    directory = run.directory(run.agent_log_dir, "online", label(facts), f"seed_{run.seed}")
    with run_directory(directory, run.saved, run.resume, VOLATILE):
        check_split(directory / "split.json", {name: ids.tolist() for name, ids in tasks.items()})
        if not (directory / "finished.json").exists():
            Online(run, *chosen, tasks, directory).train(facts)
        (directory / "state.pt").unlink(missing_ok=True)  # also the leftover of a run killed just before this line
    print_result(run, evaluation, facts)


def check(run, belief, schedule):
    """Settings that contradict each other. Raises UserError."""
    if belief.disable_decoder and schedule.switch_to_belief_reward is not None and not schedule.oracle_belief_reward:
        raise UserError("--switch-to-belief-reward needs a decoder of rewards: leave --disable-decoder True out")
    if schedule.oracle_belief_reward and run.env_type != "gridworld":
        raise UserError("--oracle-belief-reward True: only the gridworld has an exact belief")
    if schedule.refresh_interval and schedule.policy_buffer_size != schedule.vae_buffer_size:
        raise UserError("--refresh-interval needs the same roll-outs in both buffers: make --policy-buffer-size and "
                        "--vae-buffer-size equal")  # fmt: skip
    vae_config(run.problem, belief, np.zeros(0))


def split_tasks(run, split):
    """Ids of the training and of the evaluation tasks: apart, or the same where both are all there are or the settings say so.

    The shuffle does not depend on --seed: results of several seeds belong to the same tasks.
    """
    if split.num_train_tasks is None and split.num_eval_tasks is None:
        return {"train": np.arange(*run.env.train_tasks), "eval": np.arange(*run.env.test_tasks)}
    train, total = split.num_train_tasks or 0, run.problem.num_tasks
    number = split.num_eval_tasks or total - train
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
    """A run: belief model, policy, the two buffers, and what has been measured. Args: objects of the settings classes by name."""

    def __init__(self, run, belief, loss, agent, schedule, evaluation, tasks, directory):
        self.run, self.problem, self.tasks, self.directory = run, run.problem, tasks, directory
        self.belief, self.loss, self.settings = belief, loss, agent
        self.schedule, self.evaluation = schedule, evaluation
        count, steps = len(tasks["train"]), self.problem.steps
        self.policy_buffer = RolloutBuffer(count, max(1, schedule.policy_buffer_size // steps), steps)
        self.vae_buffer = RolloutBuffer(count, max(1, schedule.vae_buffer_size // steps), steps)
        rows = np.arange(count)
        actor = random_actions(self.problem, numpy_generator(run.seed, "random"))
        played = self.play(rows, schedule.num_init_rollouts_pool, actor, "random")
        self.model = make_model(run, belief, played["rewards"])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=loss.vae_lr, fused=True)
        size = self.problem.observation_size + 2 * belief.task_embedding_size
        self.agent = agent.make(1, self.problem, size, torch_generator(run.seed, "meta-agent"), run.device)
        self.task_targets = standardised_tasks(self.problem)[tasks["train"]] if belief.decode_task else None
        self.loop = Loop(
            directory, schedule.num_iters, schedule.log_interval, tensorboard=run.tensorboard, unit="iteration",
            save_every=schedule.save_interval, parts={
                "model": self.model, "optimizer": self.optimizer, "agent": self.agent, "policy_buffer": self.policy_buffer,
                "vae_buffer": self.vae_buffer,
            },
        )  # fmt: skip
        if not self.loop.step:
            self.keep(rows, played, 0)
            for update in range(schedule.pretrain_len):
                generator = torch_generator(run.seed, "pretrain", update)
                self.update_belief(torch.randint(count, (schedule.meta_batch,), generator=generator), generator)

    def play(self, rows, number, actor, name):
        """`number` roll-outs on each training task in `rows` from the evaluation start: dict of arrays (A, number, T, ...)."""
        played = play(self.problem, np.repeat(self.tasks["train"][rows], number), actor, (self.run.seed, "online", name))
        return {key: values.reshape(len(rows), number, *values.shape[1:]) for key, values in played.items()}

    def keep(self, rows, played, iteration):
        """Put what was played into both buffers, as hyper-states of the present belief into the policy's."""
        arrays = {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in played.items() if key in KEYS}
        self.vae_buffer.add(rows, {**arrays, **belief_extras(self.problem, self.belief, played["next_obs"])})
        flat = {key: played[key].reshape(-1, *played[key].shape[2:]) for key in ("obs", "actions", "rewards", "next_obs")}
        states = hyper_states(self.model, self.problem, **flat, device=self.run.device)
        switch = self.schedule.switch_to_belief_reward
        rewards = torch.from_numpy(flat["rewards"])
        if switch is not None and iteration >= switch:
            rewards = self.expected_rewards(flat, states, iteration)
        shape = arrays["rewards"].shape[:2]
        stored = {"states": states, "actions": torch.from_numpy(flat["actions"]), "rewards": rewards}
        self.policy_buffer.add(rows, {key: values.unflatten(0, shape) for key, values in stored.items()})

    def expected_rewards(self, flat, states, iteration):
        """Rewards (B, T) expected under the belief before each step: the model's, or the exact one."""
        if self.schedule.oracle_belief_reward:
            return torch.from_numpy(oracle_rewards(flat["next_obs"], flat["rewards"]))
        device = self.run.device
        beliefs = states[:, :-1, self.problem.observation_size :].to(device)
        inputs = {key: values.to(device) for key, values in model_inputs(self.problem, self.model, flat).items()}
        generator = torch_generator(self.run.seed, "belief rewards", iteration)
        return belief_rewards(self.model, beliefs, inputs, self.schedule.num_belief_samples, generator).cpu()

    def update_belief(self, rows, generator):
        """One update of the belief model on random roll-outs of the tasks in `rows`; returns the losses."""
        number = self.loss.vae_batch_num_rollouts_per_task
        drawn = self.vae_buffer.draw_rollouts(rows, number, generator)
        batch = {key: values.to(self.run.device) for key, values in drawn.items()}
        if self.task_targets is not None:
            batch["tasks"] = self.task_targets[rows].repeat_interleave(number, 0).to(self.run.device)
        return vae_update(self.model, self.optimizer, batch, self.loss, generator)

    def iterate(self, iteration):
        """Collect, update belief and policy; returns the last losses of both."""
        schedule, count = self.schedule, len(self.tasks["train"])
        generator = torch_generator(self.run.seed, "iteration", iteration)
        rows = torch.randperm(count, generator=generator)[: schedule.num_tasks_sample].numpy()
        epsilon = EPSILON_START + min(1.0, iteration / schedule.epsilon_iters) * (EPSILON_END - EPSILON_START)
        actor = BeliefAgent(self.model, self.agent, deterministic=False, generator=generator, epsilon=epsilon)
        self.keep(rows, self.play(rows, schedule.num_rollouts_per_iter, actor, iteration), iteration)
        tasks = torch.randint(count, (schedule.meta_batch,), generator=generator)
        updates, batch_size = schedule.rl_updates_per_iter, self.settings.batch_size
        losses = update_meta_agent(self.agent, self.policy_buffer, tasks, updates, batch_size, generator)
        for _ in range(schedule.vae_updates_per_iter):
            parts = self.update_belief(tasks, generator)
        if schedule.refresh_interval and (iteration + 1) % schedule.refresh_interval == 0:
            self.refresh()
        return {**{f"train/{key}": value for key, value in losses.items()},
                **{f"belief/{key}": value for key, value in parts.items()}}  # fmt: skip

    def refresh(self):
        """Hyper-states of the stored roll-outs by the present encoder; the rewards stay those of the time of collection."""
        raw, stored = self.vae_buffer.arrays, self.policy_buffer.arrays["states"]
        for row, filled in enumerate(self.vae_buffer.filled.tolist()):
            rollouts = {key: raw[key][row, :filled].numpy() for key in ("obs", "actions", "rewards", "next_obs")}
            stored[row, :filled] = hyper_states(self.model, self.problem, **rollouts, device=self.run.device)

    def train(self, facts):
        """All iterations, then what ends a run."""
        schedule, directory, loop = self.schedule, self.directory, self.loop
        groups = {"train_return": self.tasks["train"], "test_return": self.tasks["eval"]}
        for done in loop.steps():
            if schedule.decay_lr:
                decay_learning_rates([self.optimizer, *self.agent.optimizers()], done - 1, schedule.num_iters)
            losses = self.iterate(done - 1)
            if loop.due:
                losses = {key: float(value) for key, value in losses.items()}
                require_finite(sum(losses.values()), "a loss", f"--vae-lr, {self.settings.learning_rates}")
                with loop.measuring():
                    returns = measure(self.run, self.evaluation, self.model, self.agent, groups)
                loop.record(**returns, **losses)
        save_policy(directory, self.problem, self.model, self.agent)
        updates = schedule.rl_updates_per_iter
        conclude(self.run, self.evaluation, facts, self.model, self.agent, self.tasks["eval"], loop, updates)


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
