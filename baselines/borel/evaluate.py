"""Evaluation of a hyper-state policy: K episodes per task, the belief kept across them; and the result file."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from baselines.borel.beliefs import belief_rewards
from baselines.borel.problem import episode_returns, play
from baselines.borel.references import play_levels
from envs.borel_points import WIND_GOAL, directions
from envs.tasks import TASK_DIR
from src.evaluation import results
from src.evaluation.evaluate import significant
from src.evaluation.method import note_results, training_facts
from src.evaluation.references import reference_levels
from src.run.command_line import report_command
from src.run.config import is_published
from src.run.files import read_json, write_json
from src.run.seeding import torch_generator

REFERENCE_DIR = TASK_DIR.parent / "references"
DOOR_ANGLES = np.linspace(0, np.pi, 30)
DOOR_RADIUS, DOOR_STEP = 0.99, 0.1
REWARD_SAMPLES = 20  # draws from the belief per predicted reward
KEPT_TASKS = 6  # tasks whose paths and reward predictions are stored


class BeliefAgent:
    """A policy on hyper-states as an Agent (src/evaluation/agent.py): it updates its belief as it goes, and keeps it for the
    episodes that follow on the same task; `adapt([])` begins anew. One row per roll-out.

    Args:
        model: BeliefModel. agent: DQN or SAC, a stack of one. generator: of the noise, where `deterministic` is False.
        epsilon: share of random actions of a DQN that is not deterministic.
    Attributes:
        beliefs: after 0, 1, ... transitions of the roll-out, each (B, 2 L).
    """

    def __init__(self, model, agent, deterministic=True, generator=None, epsilon=0.0):
        self.model, self.agent = model, agent
        self.deterministic, self.generator, self.epsilon = deterministic, generator, epsilon
        self.device = agent.device

    def adapt(self, episodes):
        """[] forgets everything; else the belief is what it was after the last of the episodes, which this agent lived."""
        if not episodes:
            self.beliefs = []

    def start(self, observations):
        if not self.beliefs:
            self.memory = self.model.encoder.empty(len(observations))
            self._note()
        self.observations = observations

    @torch.inference_mode()
    def _note(self):
        self.beliefs.append(torch.cat(self.model.encoder.heads(self.memory), -1))

    @torch.inference_mode()
    def act(self):
        hyper = torch.cat([torch.from_numpy(self.observations).to(self.device), self.beliefs[-1]], -1)[None]
        return self.agent.act(hyper, self.generator, self.deterministic, self.epsilon)[0].cpu().numpy()

    @torch.inference_mode()
    def observe(self, actions, rewards, next_observations):
        self.observations = next_observations
        actions = actions.astype(np.int64) if self.model.config["discrete"] else actions
        actions, next_observations, rewards = (
            torch.from_numpy(np.asarray(values)).to(self.device)[None] for values in (actions, next_observations, rewards)
        )
        features = self.model.features(actions)
        self.memory = self.model.encoder.memory(features, next_observations, rewards[..., None], self.memory)[0]
        self._note()


def evaluate(problem, model, agent, task_ids, rollouts, seed, deterministic=True, pictures=False):
    """Play `rollouts` roll-outs of K episodes on each task from the evaluation start.

    Returns:
        dict, JSON-able: returns (tasks, K), rounded as those of src/evaluation/evaluate.py; success (tasks, K) as the share of
        roll-outs whose goal was visited in that episode, where the environment tells it; with `pictures` also trajectories,
        belief, reward_prediction, door_map.
    """
    rows = np.repeat(np.asarray(task_ids), rollouts)
    actor = BeliefAgent(model, agent, deterministic, torch_generator(seed, "evaluation noise"))
    played = play(problem, rows, actor, (seed, "evaluation"))
    shape = len(task_ids), rollouts, problem.episodes
    result = {"returns": significant(episode_returns(problem, played["rewards"]).reshape(shape).mean(1)).tolist()}
    if "success" in played:
        visited = played["success"].reshape(*shape, problem.horizon).any(-1)
        result["success"] = visited.mean(1).tolist()
    if pictures:
        beliefs = torch.stack(actor.beliefs, 1)  # (B, T + 1, 2 L)
        result |= describe(problem, model, task_ids, played, beliefs, rollouts, seed)
    return result


def by_episode(series, returns):
    """Numbers of a curve from returns (tasks, K): the mean under the series' name, means by episode, and their sum."""
    means = np.mean(returns, axis=0)
    episodes = {f"{series}/episode_{k + 1}": value for k, value in enumerate(means.tolist())}
    return {series: float(means.mean()), **episodes, f"{series}/sum": float(means.sum())}


def measure(run, settings, model, agent, groups):
    """Numbers of a policy in training. groups: {series: task ids}. settings: MetaEvaluation."""
    options = settings.eval_rollouts, run.seed, settings.eval_deterministic
    known = {  # the groups may be the same
        ids: evaluate(run.problem, model, agent, np.array(ids), *options)["returns"] for ids in set(map(tuple, groups.values()))
    }
    return {name: value for series, ids in groups.items() for name, value in by_episode(series, known[tuple(ids)]).items()}


def returns_curve(loop, updates):
    """The learning curve of a result file from a Loop over iterations of so many `updates`."""
    curve = {"gradient_steps": [point["step"] * updates for point in loop.curve]}
    return curve | {series: [point[series] for point in loop.curve] for series in ("train_return", "test_return")}


def describe(problem, model, task_ids, played, beliefs, rollouts, seed):
    """What the report draws: paths, spread of the belief and predicted rewards of the first roll-out of a few tasks."""
    spread = (0.5 * beliefs.chunk(2, -1)[1]).exp().mean(-1)  # mean over the latent dimensions of σ_t
    spread = spread.unflatten(0, (len(task_ids), rollouts)).mean(1).cpu().numpy()
    # evenly over the tasks, first roll-out of each
    kept = np.unique(np.linspace(0, len(task_ids) - 1, min(KEPT_TASKS, len(task_ids))).astype(int))
    first = kept * rollouts
    names = [str(int(task_ids[index])) for index in kept]
    some = {key: values[first] for key, values in played.items()}
    described = {"belief": {"spread": spread.mean(0).round(4).tolist(), "low": spread.min(0).round(4).tolist(),
                            "high": spread.max(0).round(4).tolist()}}  # fmt: skip
    if problem.plain_size == 2:
        paths = [paths_of(problem, obs, next_obs) for obs, next_obs in zip(some["obs"], some["next_obs"], strict=True)]
        described["trajectories"] = dict(zip(names, paths, strict=True))
    if model.config["decode_reward"]:
        transitions = model_inputs(problem, model, some)
        transitions = {key: values.to(beliefs.device) for key, values in transitions.items()}
        generator = torch_generator(seed, "predicted rewards")
        predicted = belief_rewards(model, beliefs[first, :-1], transitions, REWARD_SAMPLES, generator).cpu().numpy()
        described["reward_prediction"] = {
            "predicted": dict(zip(names, predicted.round(3).tolist(), strict=True)),
            "observed": dict(zip(names, some["rewards"].astype(float).round(3).tolist(), strict=True)),
        }
    if model.config["decode_state"] and "angle" in problem.tasks:
        ends = beliefs[first, problem.horizon :: problem.horizon]  # at the end of each episode, (tasks, K, 2 L)
        described["door_map"] = {"angles": DOOR_ANGLES.round(4).tolist(), **door_map(model, ends, names, problem)}
    return described


def model_inputs(problem, model, arrays):
    """numpy arrays (..., T, ·) of roll-outs -> tensors as the decoders read them."""
    inputs = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in ("obs", "next_obs", "actions")}
    inputs["actions"] = model.features(inputs["actions"])
    if model.config["num_heads"]:
        inputs["heads"] = torch.from_numpy(problem.environment.cell_index(arrays["next_obs"])).long()
    return inputs


def paths_of(problem, obs, next_obs):
    """One roll-out (T, d) -> K paths of H + 1 points."""
    starts, steps = obs[:: problem.horizon, :2], next_obs[:, :2].reshape(problem.episodes, problem.horizon, 2)
    paths = np.concatenate([starts[:, None], steps], 1).astype(float)
    return paths.round(3).tolist()


def task_parameters(problem, task):
    """Task parameters as the report knows them: "goal" is what a star marks (of the escape room the middle of the door)."""
    parameters = {key: np.asarray(values[task]).tolist() for key, values in problem.tasks.items()}
    if "angle" in parameters:
        parameters["goal"] = directions(parameters["angle"]).tolist()
    if "wind" in parameters:
        parameters["goal"] = WIND_GOAL.tolist()
    return parameters


@torch.inference_mode()
def door_map(model, beliefs, names, problem):
    """Does the decoder see the door? Beliefs at the ends of the episodes (tasks, K, 2 L) -> "outside": task -> K × 30 of 0 or 1.

    For each angle: from radius 0.99 an outward action of length 0.1; 1 where the decoded next state lies outside the circle.
    """
    outward = directions(DOOR_ANGLES)
    high = problem.space.high.astype(float)
    obs = np.zeros((len(outward), problem.observation_size), np.float32)
    obs[:, :2] = DOOR_RADIUS * outward
    actions = (DOOR_STEP * outward / high).astype(np.float32)  # the policy's range
    mean = beliefs.chunk(2, -1)[0]
    latents = mean[:, :, None].expand(-1, -1, len(outward), -1)
    transitions = {"obs": torch.from_numpy(obs).to(mean.device), "actions": torch.from_numpy(actions).to(mean.device)}
    transitions = {key: values.expand(*latents.shape[:-1], -1) for key, values in transitions.items()}
    outside = (model.predict_states(latents, transitions)[..., :2].norm(dim=-1) > 1).int().cpu().tolist()
    return {"outside": dict(zip(names, outside, strict=True))}


# -------------------------------------------------------------------------------------------------------- result files


@lru_cache
def _reference_document(env_type):
    path = REFERENCE_DIR / f"{env_type}.json"
    return read_json(path) if path.exists() else None


def reference_episodes(problem, task_ids, seed=0):
    """Reference returns: level -> (tasks, K), from configs/references where they were computed for these K and H."""
    document = _reference_document(problem.env.env_type)
    sizes = problem.episodes, problem.horizon
    if document and (document.get("episodes"), document["max_episode_steps"]) == sizes and is_published(problem.env):
        return {level: [values[task] for task in task_ids] for level, values in document["per_task"].items()}
    env_class = type(problem.environment)
    levels = {}
    if hasattr(env_class, "reference_policies") and hasattr(env_class, "compute_success"):
        tasks, train = problem.tasks, np.arange(*problem.env.train_tasks)
        played = play_levels(env_class, tasks, train, problem.episodes, seed=seed)
        levels = {level: returns.mean(1)[list(task_ids)].tolist() for level, returns in played.items()}
    if not levels:  # a family of Meta-DT's: one episode like the other
        alone = reference_levels(problem.env, problem.environment, task_ids)
        known = {level: np.array(values)[:, None] for level, values in alone.items() if values is not None}
        levels = {level: np.repeat(values, problem.episodes, 1).tolist() for level, values in known.items()}
    return levels


def conclude(run, settings, facts, model, agent, task_ids, loop, updates, made_from=None, levels=None):
    """What ends a run of a Loop over iterations of so many `updates`: the result file, and finished.json last.

    facts: those of `result_facts`. settings: MetaEvaluation. made_from: digests of what the run read. levels: further references
    (tasks, K).
    """
    final = evaluate(
        run.problem, model, agent, task_ids, settings.eval_rollouts, run.seed, settings.eval_deterministic, pictures=True
    )
    modules = {"belief": model, "policy": agent.policy_network()}
    training = {**training_facts(loop, modules), "gradient_steps": loop.total * updates}
    path = results.write_result(
        run.output_dir, run.env_type, **facts, task_ids=task_ids, measured=final, curve=returns_curve(loop, updates),
        training=training, made_from=made_from or {},
        reference={**reference_episodes(run.problem, task_ids), **(levels or {})},
        task_parameters={int(task): task_parameters(run.problem, int(task)) for task in task_ids}, config=run.saved,
        directory=loop.directory, folder=settings.results_log_dir,
    )  # fmt: skip
    if path.is_relative_to(run.output_dir):  # --results-log-dir may lie anywhere
        note_results(loop.directory, run.output_dir, [path])
    write_json(loop.directory / "finished.json", {"returns": np.mean(final["returns"], axis=0).tolist()})


def result_file(run, settings, facts):
    """Path of the result file."""
    return results.result_path(run.output_dir, {"env_type": run.env_type, **facts}, settings.results_log_dir)


def print_result(run, settings, facts):
    """What a finished run has reached."""
    path = result_file(run, settings, facts)
    returns = np.mean(results.read_result(path)["returns"], axis=0)
    episodes = ", ".join(f"{value:.2f}" for value in returns)
    follow = report_command(Path(run.output_dir, settings.results_log_dir))
    print(f"{results.label(facts)}: mean return by episode {episodes}, sum {returns.sum():.2f}; result in {path}; next: {follow}")


def result_facts(run, quality, method, ablation, privileges):
    """The facts of a run that its result file's path is built from."""
    return {
        "quality": quality, "method": method, "recipe": run.recipe, "ablation": ablation, "regime": "bamdp",
        "protocol": "strict", "validation": False, "fresh": False, "privileges": privileges, "seed": run.seed,
    }  # fmt: skip
