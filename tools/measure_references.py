"""Measure the reference levels of a family whose levels no formula gives, on all its tasks, the fresh ones among them.

    python -m tools.measure_references --env_type ant_dir

Policies that are known: no action; every training task's expert, acting without noise on all tasks; the shared agent told the
average task; a policy cloned from the pooled data of the training tasks' experts; each task's own expert, which of a task that
nothing was trained on is the shared agent told its parameters; and explicit inference, where the environment has `infer_tasks`:
the shared agent told what the rewards of the running episode say, and the average task before the first.

    trivial              no action
    task_blind           the best single policy, chosen by the mean return on the training tasks
    explicit_inference   as above
    best_known           of each task the best of all these policies: what is known to be possible there, no upper bound

Choices are made on other episodes than those reported. Of the experts the eight that serve every third training task best
are played on all tasks. Needs behaviour policies: those of stage 1, else the committed ones. Writes
configs/references/<env_type>.json, which every later result of the family shows. A few minutes of one core.

Where the environment brings its own best known policies (Meta-World: the scripted ones), its reference policies are played
instead, and on validation, test and fresh tasks those of the training tasks: the best of them is the explicit choice.

    python -m tools.measure_references --env_type metaworld_reach --eval_episodes 1
"""

import itertools

import numpy as np
import torch
from torch import nn

from src.behaviour.policies import BehaviourPolicies, task_features
from src.behaviour.store import SHARED, SOURCES, find_source, load_behaviour, pooled, read_curve
from src.data.qualities import choose_checkpoints
from src.data.scales import clipped, scale_of
from src.evaluation import references
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import significant, successes
from src.evaluation.rollout import returns, rollout
from src.run.command_line import next_command, parse_args, script_parser
from src.run.config import CONFIG_DIR, is_published, num_tasks
from src.run.errors import UserError, main_guard
from src.run.files import load_tensors, write_json
from src.run.flags import positive_int
from src.run.provenance import provenance
from src.run.seeding import derive, torch_generator

FINALISTS = 8
TRIALS = 135  # episodes by which a policy is chosen, over all training tasks together; at least three of each task
OWN, AVERAGE, INFERRED = "its own expert", "shared agent told the average task", "explicit inference"
LATER_WORTH = 20  # steps of an episode that explicit inference looks at: the first ones tell all there is


def make_parser():
    parser = script_parser(__doc__)
    parser.set_defaults(device="cpu")
    parser.add_argument("--eval_episodes", type=positive_int, default=10, help="episodes per task of the reported levels")
    parser.add_argument("--behaviour", choices=SOURCES, default="auto", help="whose experts")
    parser.add_argument("--cloning_steps", type=positive_int, default=4000, help="gradient steps of the cloned policy")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "measure_references", argv)
    if not is_published(args.env):
        raise UserError(
            f"{args.env_type} is not of configs/, whose families this measures: an environment of your own tells its levels by "
            "reference_policies or reference_levels (docs/own_environment.md)"
        )
    torch.set_num_threads(1)  # the last bits of a sum depend on the number of threads
    environment = args.env.make()
    space, tasks = environment.action_space, np.arange(num_tasks(environment))
    training = np.arange(*args.env.train_tasks)
    written = getattr(environment, "reference_policies", lambda *_: {})(environment.unwrapped.tasks, training)
    if "best_known" in written:
        return measure_written(args, environment, written, tasks)
    command = next_command(args, "train_data_collection.py")
    source = find_source(args, args.behaviour, command)
    experts = [expert(source, args.env, int(task), command) for task in tasks]

    def actor(policy, frame=None):
        one = BehaviourPolicies({name: value[None] for name, value in policy.items()}, space.low, space.high, frame=frame)
        return PolicyAgent(lambda observations: one.act(observations[None], deterministic=True)[0])

    def everyone(observations):  # rows are tasks x episodes, each task played by its own expert
        return stacked.act(observations.reshape(len(tasks), args.eval_episodes, -1), deterministic=True).reshape(-1, *space.shape)

    together = {name: torch.stack([one[name] for one in experts]) for name in experts[0]}
    stacked = BehaviourPolicies(together, space.low, space.high, frame=source.frame(environment, tasks))
    own = PolicyAgent(everyone)
    still = np.zeros(space.shape, np.float32)
    blind = {"no action": PolicyAgent(lambda observations: np.broadcast_to(still, (len(observations), *space.shape)))}
    blind |= {f"expert of task {task}": actor(experts[task], source.frame(environment, [task])) for task in training}
    told = {}
    if source.shared and source.frame(environment, [0]) is None:  # an agent that is told its task
        shared = ToldAgent(source, environment, space)
        blind[AVERAGE] = PolicyAgent(lambda observations: shared.play(observations, shared.average(len(observations))))
        told = {INFERRED: shared} if hasattr(environment, "infer_tasks") else {}
    observations, actions, _ = play(args, own, tasks, "data")
    known = np.isin(np.repeat(tasks, args.eval_episodes), training)
    blind["cloned from the pooled data of all experts"] = clone(args, observations[known, :-1], actions[known], space)

    blind = finalists(args, blind, training)
    count = max(3, TRIALS // len(training))
    trials = {name: play(args, agent, tasks, "choice", count)[2].mean(1) for name, agent in (blind | told).items()}
    chosen, scores, best = choose(trials, blind, play(args, own, tasks, "choice")[2].mean(1), training)
    best_known = play(args, own, tasks)[2]
    for task, name in enumerate(best):
        if name != OWN:
            best_known[task] = play(args, (blind | told)[name], [task])[2][0]
    levels = {"trivial": play(args, blind["no action"], tasks)[2], "task_blind": play(args, blind[chosen], tasks)[2]}
    if told:
        levels["explicit_inference"] = play(args, told[INFERRED], tasks)[2]
    levels["best_known"] = best_known
    per_task = {name: significant(values.mean(1)).tolist() for name, values in levels.items()}
    document = {
        "env_type": args.env_type,
        "max_episode_steps": args.env.max_episode_steps,
        "eval_episodes": args.eval_episodes,
        "policies": {"kind": source.kind, "trained_on": trained_on(source)},
        "task_blind": {"chosen": chosen, "training_tasks": scores},
        "best_known": best,
        "per_task": per_task,
    }
    print(f"{write_levels(args, document)}; task-blind is the {chosen}")


def write_levels(args, document):
    """Write a family's file and print the means on test and fresh tasks; returns its path."""
    path = CONFIG_DIR / "references" / f"{args.env_type}.json"
    write_json(path, {**document, **provenance()})
    for kind in ("test", "fresh"):
        ids = range(*(getattr(args.env, f"{kind}_tasks") or (0, 0)))
        levels = document["per_task"].items()
        means = ", ".join(f"{name} {np.mean([values[task] for task in ids]):.4g}" for name, values in levels if ids)
        print(f"{kind} tasks: {means or 'there are none'}")
    return path


def measure_written(args, environment, policies, tasks):
    """The levels of policies that the environment brings, by code: returns, and success where it is reported.

    The explicit choice is measured where tasks differ in their rewards alone: elsewhere it is no other policy than the task's.
    """
    rows, count = np.repeat(tasks, args.eval_episodes), args.eval_episodes
    per_task, success = {}, {}
    for name, policy in policies.items():
        episode = references.play(args.env, policy, rows, count)
        per_task[name] = returns(episode).reshape(-1, count).mean(1).tolist()
        if "success" in episode["infos"]:
            success[name] = successes(episode).reshape(-1, count).mean(1).tolist()
    if hasattr(environment, "compute_rewards"):
        chosen = [explicit_choice(args, policies["best_known"], task) for task in tasks]
        per_task[references.EXPLICIT_CHOICE], success[references.EXPLICIT_CHOICE] = map(list, zip(*chosen, strict=True))
    document = {"env_type": args.env_type, "max_episode_steps": args.env.max_episode_steps, "eval_episodes": count}
    print(write_levels(args, {**document, "per_task": per_task, "success": success}))


def explicit_choice(args, policy, task):
    """(return, success) of the best policy of another training task on `task`; Nones where it is only a training task."""
    if not any(task in range(*(ids or (0, 0))) for ids in (args.env.validation_tasks, args.env.test_tasks, args.env.fresh_tasks)):
        return None, None
    count, others = args.eval_episodes, [other for other in range(*args.env.train_tasks) if other != task]
    told = np.repeat(others, count)  # every candidate starts where the reported levels do
    episode = references.play(args.env, policy, np.full(len(told), task), count, told)
    scores = returns(episode).reshape(-1, count).mean(1)
    best = int(np.argmax(scores))
    reached = successes(episode).reshape(-1, count).mean(1)[best] if "success" in episode["infos"] else None
    return float(scores[best]), None if reached is None else float(reached)


def expert(source, env, task, command):
    """Weights of the expert checkpoint of one task's policy; a shared agent is told of any task."""
    curve, weights = load_behaviour(source, env, task, command, untrained=True)
    row = choose_checkpoints(curve, "expert", 1, 0.5)[0]
    return {name: value[row] for name, value in weights.items()}


def trained_on(source):
    """The tasks that a shared agent was trained on; None for agents of single tasks."""
    return read_curve(source.directory / SHARED, shared=True)["task_ids"] if source.shared else None


class ToldAgent:
    """Explicit inference, an Agent: the shared agent, told the task that the running episode's rewards name."""

    def __init__(self, source, environment, space):
        self.environment, self.known = environment, trained_on(source)
        weights = load_tensors(source.directory / SHARED / "checkpoints.safetensors")
        self.size = weights.pop("task_features").shape[-1]
        row = choose_checkpoints(pooled(read_curve(source.directory / SHARED, shared=True)), "expert", 1, 0.5)[0]
        chosen = {name: value[row : row + 1] for name, value in weights.items() if name != "steps"}
        self.policy = BehaviourPolicies(chosen, space.low, space.high)

    def average(self, rows):
        """Standardised features of the average task, (rows, k)."""
        return np.zeros((rows, self.size), np.float32)

    def play(self, observations, features):
        """Actions (B, d_a) without noise, of the agent that is told `features` (B, k)."""
        seen = np.concatenate([observations, features], -1).astype(np.float32)
        return self.policy.act(seen[None], deterministic=True)[0]

    def adapt(self, episodes):
        """Every episode begins from nothing."""

    def start(self, observations):
        self.observations, self.actions, self.rewards = [observations], [], []

    def act(self):
        features = self.average(len(self.observations[0]))
        if self.rewards:
            seen = self.observations[: LATER_WORTH + 1], self.actions[:LATER_WORTH], self.rewards[:LATER_WORTH]
            told = self.environment.infer_tasks(*(np.stack(values, 1) for values in seen))
            features = task_features(self.environment, self.known, told)
        return self.play(self.observations[-1], features)

    def observe(self, actions, rewards, next_observations):
        self.observations.append(next_observations)
        self.actions.append(actions)
        self.rewards.append(rewards)


def finalists(args, blind, training):
    """The candidates without the experts of training tasks but those FINALISTS that serve a third of these tasks best."""
    experts = {name: agent for name, agent in blind.items() if name.startswith("expert of task ")}
    served = {name: play(args, agent, training[::3], "finalists", 2)[2].mean() for name, agent in experts.items()}
    lost = sorted(served, key=served.get)[:-FINALISTS]
    return {name: agent for name, agent in blind.items() if name not in lost}


def choose(trials, blind, own, training):
    """The policies of the levels, from returns on episodes that are not reported.

    trials: {candidate: (tasks,) mean returns}. blind: the candidates that ignore the task. own: (tasks,) returns of each task's
    own expert. training: ids of training tasks.
    Returns the task-blind level's candidate, the best on the training tasks; {candidate: its mean there}; and the list of each
    task's best policy, OWN or the candidate that does better.
    """
    scores = {name: float(trials[name][training].mean()) for name in blind}
    best = [max(trials, key=lambda name, task=task: trials[name][task]) for task in range(len(own))]
    best = [name if trials[name][task] > own[task] else OWN for task, name in enumerate(best)]
    return max(scores, key=scores.get), scores, best


def play(args, agent, tasks, purpose="reference", episodes=None):
    """Observations and actions of every row, and returns (tasks, episodes), of an Agent; `purpose` decides on the starts."""
    episodes = episodes or args.eval_episodes
    rows = np.repeat(tasks, episodes)
    seeds = [derive(args.seed, purpose, int(task), row % episodes) % 2**31 for row, task in enumerate(rows)]
    episode = rollout(agent, make_batch(args.env, rows), seeds, args.env.max_episode_steps)
    return episode["observations"], episode["actions"], returns(episode).reshape(len(tasks), episodes)


def clone(args, observations, actions, space, batch=512, width=256):
    """Behaviour cloning of pooled data (E, T, ...) by a network that is not told the task: an Agent."""
    torch.manual_seed(derive(args.seed, "cloning"))
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a)).flatten(0, 1) for a in (observations, actions))
    mean, std, bound = scale_of(inputs)
    scale = torch.from_numpy(np.maximum(np.abs(space.low), np.abs(space.high)))
    sizes = [inputs.shape[-1], width, width]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(width, targets.shape[-1]), nn.Tanh())
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), torch_generator(args.seed, "cloning")
    for _ in range(args.cloning_steps):
        rows = torch.randint(len(inputs), (batch,), generator=generator)
        loss = (model(clipped((inputs[rows] - mean) / std, bound)) - targets[rows] / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def act(observations):
        return (model(clipped((torch.from_numpy(observations) - mean) / std, bound)) * scale).numpy()

    return PolicyAgent(act)


if __name__ == "__main__":
    main()
