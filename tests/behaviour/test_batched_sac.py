"""Stage 1's fast paths: the stacked update, many agents at once, one agent for a family, and what stage 2 makes of it."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import point_robot

import get_datasets
import train_data_collection
from src.behaviour import store as behaviour
from src.behaviour.multitask_sac import Family
from src.behaviour.policies import BehaviourPolicies, for_task, task_features, to_bounds
from src.behaviour.replay import Replay
from src.behaviour.settings import AgentSettings, Checkpoints, SharedSettings
from src.behaviour.stacked_sac import StackedSAC
from src.behaviour.store import Source, load_behaviour
from src.data.trajectories import load
from src.evaluation.method import RunSettings
from src.run.command_line import parse_args
from src.run.errors import UserError
from src.run.files import load_tensors, read_json, write_json
from src.run.seeding import torch_generator
from src.run.settings import pick
from tools import export_behaviour, measure_references, readme, sac_experts

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--learning_starts", "40", "--batch_size", "16", "--hidden_sizes", "16", "16", "--eval_episodes", "2"]
TINY += ["--no-tensorboard", "--entropy_coefficient", "auto", "--save_seconds", "0"]
BATCHED = ["--algo", "batched_sac", "--num_steps", "160", "--save_freq", "30", "--task_id_end", "3", *TINY]
SHARED = ["--algo", "multitask_sac", "--num_steps", "1600", "--save_freq", "200", "--num_envs", "4",
          "--task_id_end", "50", *TINY]  # fmt: skip


def command(output_dir, *flags, env_type="point_robot"):
    return ["--env_type", env_type, "--output_dir", str(output_dir), *flags]


def artifacts(output_dir):
    """Everything that stage 2 reads, without the note of where it ran: {file: content}."""
    found = {}
    for path in sorted((output_dir / "saves" / "point_robot" / "behaviour").rglob("*")):
        if path.name == "curve.json":
            found[path.parent.name] = {**read_json(path), "provenance": None}
        elif path.suffix == ".safetensors":
            found[path.parent.name, "weights"] = path.read_bytes()
        assert path.name != "state.pt"
    assert found
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with a shared agent of all 50 Point-Robot tasks."""
    folder = tmp_path_factory.mktemp("trained")
    train_data_collection.main(command(folder, *SHARED))
    return folder


def learner(agents=2, entropy=0.2, observation_size=3, generator=None):
    return StackedSAC(
        agents, observation_size, 2, [16, 8], learning_rate=1e-3, gamma=0.9, tau=0.05, entropy=entropy, device="cpu",
        generators=[generator or torch.Generator().manual_seed(0)] * agents,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the arithmetic


def copy_weights(stacked, agent, model):
    """Put the networks of a stable-baselines3 SAC into those of one agent."""

    def put(networks, index, layers):
        for weight, bias, (new_weight, new_bias) in zip(networks.weights, networks.biases, layers, strict=True):
            weight[index], bias[index, 0] = new_weight, new_bias

    def linear(module):
        return [(part.weight.data, part.bias.data) for part in module if isinstance(part, torch.nn.Linear)]

    heads = model.actor.mu, model.actor.log_std
    head = torch.cat([part.weight.data for part in heads]), torch.cat([part.bias.data for part in heads])
    put(stacked.actor, agent, [*linear(model.actor.latent_pi), head])
    for twin in (0, 1):
        put(stacked.critics, 2 * agent + twin, linear(getattr(model.critic, f"qf{twin}")))
        put(stacked.targets, 2 * agent + twin, linear(getattr(model.critic_target, f"qf{twin}")))


@pytest.mark.parametrize("entropy", [0.2, "auto"])
def test_update_is_that_of_stable_baselines3(entropy):
    import gymnasium as gym
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    class Shapes(gym.Env):
        observation_space = gym.spaces.Box(-10, 10, (3,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    settings = {"learning_rate": 1e-3, "gamma": 0.9, "tau": 0.05, "ent_coef": entropy, "policy_kwargs": {"net_arch": [16, 8]}}
    models = [SAC("MlpPolicy", Shapes(), seed=seed, **settings) for seed in (0, 1)]
    ours, theirs, start = learner(entropy=entropy), learner(entropy=entropy), learner(entropy=entropy)
    for agent, model in enumerate(models):
        model.set_logger(Logger(None, []))
        model.critic_target.load_state_dict({key: 0.9 * value for key, value in model.critic.state_dict().items()})
        copy_weights(ours, agent, model)
        copy_weights(start, agent, model)
    generator = torch.Generator().manual_seed(0)
    for update in range(4):
        observations, following = torch.randn(2, 2, 32, 3, generator=generator)
        actions, rewards = 2 * torch.rand(2, 32, 2, generator=generator) - 1, torch.randn(2, 32, generator=generator)
        noise = []
        for agent, model in enumerate(models):
            columns = observations[agent], actions[agent], following[agent], torch.zeros(32, 1), rewards[agent][:, None]
            batch = ReplayBufferSamples(*columns)
            model.replay_buffer.sample = lambda *_, batch=batch, **__: batch
            torch.manual_seed(update)
            model.train(1, 32)
            torch.manual_seed(update)
            noise.append(torch.cat([torch.randn(32, 2), torch.randn(32, 2)]))
        ours.update(observations, actions, rewards, following, torch.stack(noise))
    for agent, model in enumerate(models):
        copy_weights(theirs, agent, model)
        if entropy == "auto":
            assert ours.log_alpha[agent].item() == pytest.approx(model.log_ent_coef.item(), abs=1e-6)
    for name in ("actor", "critics", "targets"):
        mine, expected, before = (getattr(part, name).flat for part in (ours, theirs, start))
        assert (expected - before).abs().max() > 1e-3
        torch.testing.assert_close(mine, expected, atol=2e-6, rtol=0)


def test_stored_weights_act_exactly_as_the_agent():
    agent = learner()
    for piece in (agent.actor.flat, agent.critics.flat):
        piece.copy_(piece.half())  # as they are stored
    low, high = np.float32([-1, 0]), np.float32([1, 4])
    policies = BehaviourPolicies(agent.actor_weights(), low, high)
    observations = torch.randn(2, 5, 3)
    noise = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1))
    expected = to_bounds(agent.act(observations, noise).numpy(), low, high)
    np.testing.assert_array_equal(policies.act(observations, torch.Generator().manual_seed(1)), expected)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = policies.act(observations, generators)
    alone = BehaviourPolicies({name: value[1:] for name, value in agent.actor_weights().items()}, low, high)
    np.testing.assert_array_equal(together[1:], alone.act(observations[1:], torch.Generator().manual_seed(4)))


def test_telling_the_task_is_moving_the_bias():
    agent = learner(agents=1, observation_size=5)  # 3 observed, 2 told
    weights = {name: value[0] for name, value in agent.actor_weights().items()}
    features, observations = torch.tensor([0.3, -1.2]), torch.randn(1, 4, 3)
    bounds = np.float32([-1, -1]), np.float32([1, 1])
    told = torch.cat([observations, features.expand(1, 4, 2)], -1)
    whole = BehaviourPolicies({name: value[None] for name, value in weights.items()}, *bounds)
    one = BehaviourPolicies({name: value[None] for name, value in for_task(weights, features).items()}, *bounds)
    np.testing.assert_allclose(one.act(observations, deterministic=True), whole.act(told, deterministic=True), atol=1e-6)


def test_replay_by_hand():
    replay = Replay(2, 3, {"a": 1, "b": 2})
    for step in range(5):
        replay.add(np.array([[[step]], [[-step]]]), np.full((2, 1, 2), 10 * step))
    assert (replay.size, replay.position) == (3, 2)
    rows = replay.sample(torch.tensor([[0.0, 0.4, 0.999999999], [0.0, 0.4, 1.0]], dtype=torch.float64))
    assert rows["a"][..., 0].tolist() == [[3, 4, 2], [-3, -4, -2]] and rows["b"][0, :, 1].tolist() == [30, 40, 20]
    other = Replay(2, 3, {"a": 1, "b": 2})
    other.add(np.zeros((2, 2, 1)), np.zeros((2, 2, 2)))
    other.load_state_dict(replay.state_dict())
    other.add(np.arange(4).reshape(2, 2, 1), np.zeros((2, 2, 2)))  # over the end
    assert other.rows[0, :, 0].tolist() == [1, 4, 0] and other.position == 1


# ------------------------------------------------------------------------------------------------------- relabelling


def short_run(env_type, tmp_path, *flags):
    args = parse_args(
        train_data_collection.make_parser(), "train_data_collection", command(tmp_path, *SHARED, *flags, env_type=env_type)
    )
    kinds = RunSettings, AgentSettings, SharedSettings, Checkpoints
    run = Family(*(pick(kind, args) for kind in kinds), list(range(50)))
    run.play_round(0)
    return run


def test_relabelled_rewards_are_those_of_the_other_task(tmp_path):
    run = short_run("cheetah_vel", tmp_path, "--learning_starts", "1000000", "--num_envs", "2", "--relabel_share", "0.5")
    observations, actions, rewards, _ = run.draw(400, np.random.default_rng(0))
    stored = run.replay.sample(torch.from_numpy(np.random.default_rng(0).random((1, 400))))
    task = torch.cdist(observations[:, -run.features.shape[1] :], run.features).argmin(1).numpy()
    moved = task != stored["task"][0, :, 0].numpy()
    assert 0.4 < moved.mean() < 0.6 and len(set(task)) > 40
    torch.testing.assert_close(rewards[~moved], stored["rewards"][0][~moved], atol=2e-4, rtol=0)
    assert torch.equal(actions, stored["actions"][0])
    tasks, former = run.environment.tasks, stored["task"][0, :, 0].long().numpy()
    step = stored["next_observations"][0, :, -3] - stored["observations"][0, :, -3]
    gap = [np.abs(step.numpy() / 0.05 - tasks["velocity"][ids]) for ids in (task, former)]
    expected = gap[1] - gap[0]
    np.testing.assert_allclose((rewards - stored["rewards"][0])[:, 0], expected, atol=2e-3)


def test_rewards_of_ones_own_are_cast_and_checked(tmp_path, monkeypatch):
    run = short_run("point_robot", tmp_path, "--learning_starts", "1000000", "--num_envs", "2")
    right, plain = type(run.environment).compute_rewards, run.draw(40, np.random.default_rng(0))
    for hook, message in (
        (lambda *some: right(*some).astype(np.float64), None),
        (lambda *some: right(*some).tolist(), None),
        (lambda *some: right(*some)[:, None], r"shape \(40, 1\) for \(40,\) transitions.*or give --relabel_share 0"),
        (lambda *_: np.zeros(3), r"shape \(3,\) for \(40,\) transitions"),
        (lambda *some: right(*some) + 100, "compute_rewards gives .* for a step that was paid .*, or give --relabel_share 0"),
        (lambda *some: right(*some) * np.nan, "compute_rewards gives numbers that are not finite"),
        (lambda *_: {}[0], "compute_rewards fails .*KeyError"),
    ):
        monkeypatch.setattr(type(run.environment), "compute_rewards", staticmethod(hook))
        run.compared = False
        if message is None:
            for ours, theirs in zip(run.draw(40, np.random.default_rng(0)), plain, strict=True):
                assert torch.equal(ours, theirs)
            continue
        with pytest.raises(UserError, match=message):
            run.draw(40, np.random.default_rng(0))


def test_learning_rate_of_the_shared_agent_falls_to_0_at_its_end(tmp_path):
    run = short_run("point_robot", tmp_path, "--learning_rate", "0.004", "--decay_share", "0.5", "--num_envs", "2")
    rates = {}
    for step in range(40, 1600, 40):
        before = run.learner.actor.flat.clone()
        run.play_round(step)
        rates[step] = {optimizer.param_groups[0]["lr"] for optimizer in run.learner.optimizers.values()}
        assert not torch.equal(before, run.learner.actor.flat)
    assert len(run.learner.optimizers) == 3 and rates[40] == rates[800] == {0.004}
    assert rates[1200] == {0.002} and max(rates[1560]) == pytest.approx(0.0002)


def test_dynamics_families_are_not_relabelled(tmp_path):
    with pytest.raises(UserError, match="no compute_rewards to relabel with: give --relabel_share 0"):
        short_run("hopper_rand_params", tmp_path)
    run = short_run("hopper_rand_params", tmp_path, "--relabel_share", "0", "--num_envs", "2")
    assert run.features.shape == (100, 4 + 12 + 3 + 5)
    assert run.draw(30, np.random.default_rng(0))[0].shape == (30, 11 + 24)


def test_what_follows_an_end_is_worth_nothing():
    """An update in which no episode goes on is one without future, one in which all do the ordinary one."""

    def updated(gamma, *goes_on):
        learner = StackedSAC(
            1, 3, 2, (8, 8), learning_rate=1e-2, gamma=gamma, tau=0.1, entropy=0.2, device="cpu",
            generators=[torch_generator(0, "init")],
        )  # fmt: skip
        generator = torch_generator(0, "batch")
        observations, following = (torch.randn(1, 6, 3, generator=generator) for _ in range(2))
        actions, rewards = torch.rand(1, 6, 2, generator=generator), torch.randn(1, 6, generator=generator)
        learner.update(observations, actions, rewards, following, torch.randn(1, 12, 2, generator=generator), *goes_on)
        return learner.critics.flat

    assert torch.equal(updated(0.9, torch.zeros(1, 6)), updated(0.0))
    assert torch.equal(updated(0.9, torch.ones(1, 6)), updated(0.9))
    assert not torch.equal(updated(0.9), updated(0.0))


@pytest.mark.parametrize("env_type", ["hopper_rand_params", "walker_rand_params"])
def test_training_episodes_end_at_falls(tmp_path, env_type):
    falls = ["--relabel_share", "0", "--num_envs", "2", "--learning_starts", "1000000", "--end_at_falls"]
    run = short_run(env_type, tmp_path, *falls)
    rows = run.replay.rows[0, : run.replay.size].reshape(200, 2, -1)  # (step, robot, columns)
    parts = dict(zip(run.replay.columns, rows.split(list(run.replay.columns.values()), -1), strict=True))
    fell = run.environment.fallen(parts["next_observations"].reshape(400, -1).numpy()).reshape(200, 2)
    assert np.array_equal(parts["goes_on"][..., 0] == 0, fell) and 2 < fell.sum() < 100  # random actions fall soon
    begun = parts["observations"][1:][fell[:-1]]
    start = run.environment.reset(seed=0, options={"task": 0})[0]
    assert np.abs(begun.numpy() - start).max() < 0.02 and len({tuple(row) for row in begun.tolist()}) == len(begun)
    assert torch.equal(parts["observations"][1:][~fell[:-1]], parts["next_observations"][:-1][~fell[:-1]])
    assert torch.equal(run.draw(30, np.random.default_rng(0))[4].unique(), torch.tensor([0.0, 1.0]))
    again = short_run(env_type, tmp_path, *falls)
    assert torch.equal(again.replay.rows[0, : again.replay.size], rows.reshape(400, -1))


def test_who_cannot_fall_has_no_such_ends(tmp_path):
    with pytest.raises(UserError, match="PointRobotEnv has no `fallen` that tells of falls: leave --end_at_falls out"):
        short_run("point_robot", tmp_path, "--end_at_falls")


@pytest.mark.parametrize("env_type", ["hopper_rand_params", "walker_rand_params"])
def test_exponents_that_are_not_told_do_not_act(env_type):
    args = parse_args(train_data_collection.make_parser(), "train_data_collection", ["--env_type", env_type])
    environment = args.env.make()
    task = {key: values[[3]] for key, values in environment.tasks.items()}
    other = {key: values.copy() for key, values in task.items()}
    other["mass_exponent"][:, 0] += 1
    other["inertia_exponent"][:, 0] += 1
    other["damping_exponent"][:, :3] += 1
    other["friction_exponent"][:, :, 1:] += 1
    np.testing.assert_array_equal(environment.task_features(task), environment.task_features(other))
    batches = [environment.batch_class(tasks, threads=1) for tasks in (task, other)]
    starts = [batch.reset([0]) for batch in batches]
    np.testing.assert_array_equal(*starts)
    generator = np.random.default_rng(0)
    for _ in range(100):
        action = generator.uniform(-1, 1, (1, *environment.action_space.shape))
        np.testing.assert_array_equal(*(batch.step(action)[0] for batch in batches))


# ------------------------------------------------------------------------------------------------- killing and resuming


def kill_when_saved(flags):
    """Run stage 1 in a process of its own and kill it as soon as it has saved its state for the first time."""
    process = subprocess.Popen([sys.executable, "train_data_collection.py", *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = Path(flags[flags.index("--output_dir") + 1]) / "saves"
    deadline = time.time() + 300
    while not list(folder.rglob("state.pt")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.rglob("state.pt"))
    assert not list(folder.rglob("curve.json"))


@pytest.mark.long
def test_killed_shared_agent_resumes_to_the_same_weights(trained, tmp_path):
    kill_when_saved(command(tmp_path, *SHARED))
    train_data_collection.main(command(tmp_path, *SHARED))
    assert artifacts(tmp_path) == artifacts(trained)


@pytest.mark.long
def test_killed_group_resumes_to_the_same_weights(tmp_path, capsys):
    whole, killed = command(tmp_path / "whole", *BATCHED), command(tmp_path / "killed", *BATCHED, "--workers", "1")
    train_data_collection.main([*whole, "--workers", "1"])
    kill_when_saved(killed)
    with pytest.raises(SystemExit):
        train_data_collection.main([*killed, "--task_id_end", "2"])
    assert "unfinished run of tasks [0, 1, 2]" in capsys.readouterr().err
    train_data_collection.main(killed)
    expected = artifacts(tmp_path / "whole")
    assert artifacts(tmp_path / "killed") == expected
    assert expected["task_002"]["steps"] == [30, 60, 90, 120, 150, 160]

    # the draws of a task do not depend on the tasks beside it, only the last bits of the products do
    train_data_collection.main(command(tmp_path / "alone", *BATCHED, "--workers", "1", "--group_size", "1"))
    together, alone = (
        load_tensors(tmp_path / run / "saves/point_robot/behaviour/task_001/checkpoints.safetensors")
        for run in ("whole", "alone")
    )
    for name, values in together.items():
        torch.testing.assert_close(values, alone[name], atol=2e-3, rtol=0)


def test_group_finishes_what_a_kill_left(tmp_path):
    flags = command(tmp_path, *BATCHED, "--workers", "1")
    train_data_collection.main(flags)
    expected = artifacts(tmp_path)
    (tmp_path / "saves/point_robot/behaviour/task_001/curve.json").unlink()
    train_data_collection.main(flags)  # without the group's state the task is trained again, alone
    found = artifacts(tmp_path)
    assert found["task_000"] == expected["task_000"] and found["task_001"]["steps"] == expected["task_001"]["steps"]


# --------------------------------------------------------------------------------------------------------------- stage 2


def dataset(output_dir, quality, *flags):
    get_datasets.main(
        command(output_dir, "--data_type", quality, "--capacity", "200", "--task_id_end", "3", "--workers", "1", *flags)
    )
    return load(output_dir / "datasets", "point_robot", quality)


def test_datasets_of_a_shared_agent(trained):
    curve = read_json(trained / "saves/point_robot/behaviour/multitask/curve.json")
    assert np.shape(curve["stochastic_returns"]) == (8, 50, 2) and curve["steps"][-1] == 1600
    made = dataset(trained, "replay")
    again = dataset(trained, "replay", "--no-resume")
    np.testing.assert_array_equal(made.actions, again.actions)
    (entry,) = again.metadata["provenance"]
    facts = entry["behaviour"]["2"]
    assert entry["policies"] == "multitask"
    assert facts["checkpoint_steps"] == curve["steps"]
    assert facts["checkpoint_returns"] == [pytest.approx(np.mean(row[2]), abs=1e-3) for row in curve["stochastic_returns"]]

    # the episodes are those of the network that is told the task
    env = parse_args(get_datasets.make_parser(), "get_datasets", ["--env_type", "point_robot"]).env
    _, weights = load_behaviour(Source(trained / "saves/point_robot/behaviour", "multitask"), env, 2, "")
    stored = load_tensors(trained / "saves/point_robot/behaviour/multitask/checkpoints.safetensors")
    features = torch.from_numpy(task_features(env.make(), range(50)))[:50]
    torch.testing.assert_close(stored["task_features"], features)  # of the tasks that it is trained on
    rows = [np.flatnonzero(made.task_ids == 2)[-1]]  # the last episode is the last checkpoint's
    observations = torch.from_numpy(made.observations[rows, :-1])
    told = torch.cat([observations, features[2].expand(1, 20, 2)], -1)
    space = env.make().action_space
    whole = BehaviourPolicies({name: stored[name][-1:] for name in weights}, space.low, space.high)
    one = BehaviourPolicies({name: values[-1:] for name, values in weights.items()}, space.low, space.high)
    expected = whole.act(told, deterministic=True)
    np.testing.assert_allclose(one.act(observations, deterministic=True), expected, atol=1e-6)
    spread = np.abs(made.actions[rows] - expected)
    assert 0 < spread.mean() < 0.1  # the played actions are samples around these


def test_cross_data_are_played_by_other_tasks_policies(trained, monkeypatch):
    class Noiseless(BehaviourPolicies):
        def act(self, observations, generator=None, deterministic=False):
            return super().act(observations, generator, deterministic=True)

    monkeypatch.setattr("src.behaviour.collect.BehaviourPolicies", Noiseless)
    made = dataset(trained, "cross", "--no-resume")
    facts = made.metadata["provenance"][0]["behaviour"]["2"]
    assert 2 in facts["players"] and len(facts["players"]) == 6 and max(facts["players"]) < 45
    env = parse_args(get_datasets.make_parser(), "get_datasets", ["--env_type", "point_robot"]).env
    space, source, acted = env.make().action_space, Source(trained / "saves/point_robot/behaviour", "multitask"), []
    episodes = made.select([2])
    for player, step in zip(facts["players"], facts["checkpoint_steps"], strict=True):
        curve, weights = load_behaviour(source, env, player, "")
        row = curve["steps"].index(step)
        policy = Noiseless({name: value[row][None] for name, value in weights.items()}, space.low, space.high)
        near = np.abs(policy.act(episodes.observations[:, :-1].reshape(1, -1, 2)).reshape(10, 20, 2) - episodes.actions)
        acted.append(near.max((1, 2)) < 1e-5)
    acted = np.array(acted)  # (players, episodes)
    own = facts["players"].index(2)
    assert acted.sum(0).tolist() == [1] * 10  # every episode by one of the six
    assert acted[own].tolist() == [True] * 5 + [False] * 5


def test_committed_policies_step_in(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(behaviour, "COMMITTED", tmp_path / "behaviour")
    flags = ["--env_type", "point_robot", "--output_dir", str(trained)]
    export_behaviour.main([*flags, "--keep", "4"])
    assert "4 of 8 checkpoints" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        export_behaviour.main([*flags, "--eval_episodes", "5"])
    assert "measures agents of single tasks" in capsys.readouterr().err
    whole = read_json(trained / "saves/point_robot/behaviour/multitask/curve.json")
    kept = read_json(tmp_path / "behaviour/point_robot/multitask/curve.json")
    assert len(kept["steps"]) == 4 and kept["steps"][0] == 240 and kept["steps"][-1] == 1600
    row = whole["steps"].index(kept["steps"][1])
    assert np.shape(kept["stochastic_returns"])[-1] == 1 == np.shape(kept["random_returns"])[-1]  # means
    np.testing.assert_allclose(np.mean(kept["stochastic_returns"][1], -1), np.mean(whole["stochastic_returns"][row], -1))
    made = dataset(tmp_path / "fresh", "expert")  # the best of the last fifth: of the four, the last
    assert "those that come with the repository play" in capsys.readouterr().err
    assert made.metadata["provenance"][0]["behaviour"]["0"]["checkpoint_steps"] == [1600]
    monkeypatch.setattr(behaviour, "COMMITTED", tmp_path / "none")
    with pytest.raises(SystemExit):
        dataset(tmp_path / "other", "expert", "--behaviour", "committed")
    assert "no behaviour policies of point_robot come with the repository" in capsys.readouterr().err


def test_agents_of_single_tasks_may_be_committed_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(behaviour, "COMMITTED", tmp_path / "behaviour")
    train_data_collection.main(command(tmp_path, *BATCHED))
    own = dataset(tmp_path, "replay")
    export_behaviour.main(["--env_type", "point_robot", "--output_dir", str(tmp_path)])
    assert capsys.readouterr().out.count("6 of 6 checkpoints") == 3
    committed = dataset(tmp_path / "fresh", "replay")
    np.testing.assert_array_equal(committed.actions, own.actions)
    assert committed.metadata["provenance"][0]["policies"] == "committed"
    folder = behaviour.committed_directory("point_robot") / "task_001"
    trained = read_json(folder / "curve.json")
    for episodes in (2, 5):  # measured again: the same draws, or more of them
        export_behaviour.main(["--env_type", "point_robot", "--output_dir", str(tmp_path), "--eval_episodes", str(episodes)])
        again = read_json(folder / "curve.json")
        assert np.shape(again["stochastic_returns"]) == (6, 1) and len((folder / "curve.json").read_text().splitlines()) < 60
        if episodes != 5:
            np.testing.assert_allclose(again["stochastic_returns"], trained["stochastic_returns"], rtol=1e-4)
    assert np.abs(np.subtract(again["stochastic_returns"], trained["stochastic_returns"])).max() > 1e-3
    assert again["provenance"] == trained["provenance"] and "commit" in again["provenance_of_returns"]
    assert read_json(folder / "config.json")["eval_episodes"] == 5
    with pytest.raises(SystemExit):
        export_behaviour.main(["--env_type", "point_robot", "--output_dir", str(tmp_path / "empty")])
    assert "no finished behaviour policies" in capsys.readouterr().err


def test_curves_of_single_tasks_become_a_table(tmp_path, capsys):
    flags = ["--env_type", "point_robot", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        sac_experts.main(flags)
    assert "no finished agents of single tasks" in capsys.readouterr().err
    train_data_collection.main(command(tmp_path, *BATCHED))
    path = tmp_path / "curves.json"
    sac_experts.main([*flags, "--output", str(path)])
    found = read_json(path)
    (task, curve), *_ = found["curves"].items()
    stored = read_json(behaviour.task_directory(tmp_path, "point_robot", int(task)) / "curve.json")
    assert curve["stochastic_returns"] == pytest.approx(np.mean(stored["stochastic_returns"], 1), abs=0.01)
    assert len(found["curves"]) == 3 and len(curve["steps"]) == 6
    lines = readme.table("none", [str(path)]).splitlines()
    assert lines[0].startswith("| task | random | task_blind | best_known | ") and len(lines) == 2 + 3
    assert lines[2].split(" | ")[3] == f"{found['best_known'][task]:.4g}"


def test_reference_levels_are_measured(trained, tmp_path, monkeypatch):
    (tmp_path / "references").mkdir()
    monkeypatch.setattr(measure_references, "CONFIG_DIR", tmp_path)
    monkeypatch.delattr("envs.point_robot.PointRobotEnv.reference_policies")  # as if no formula gave the levels
    made, chosen_by, own = {}, [], []

    def expert(source, env, task, words, expert=measure_references.expert):
        made[task] = expert(source, env, task, words)
        return made[task]

    def choose(trials, blind, returns, training, choose=measure_references.choose):
        chosen_by.extend(training.tolist())
        return choose(trials, blind, returns, training)

    def play(args, agent, tasks, purpose="reference", *rest, play=measure_references.play):
        own.extend([agent] * (purpose == "data"))
        return play(args, agent, tasks, purpose, *rest)

    for spy in (expert, choose, play):
        monkeypatch.setattr(measure_references, spy.__name__, spy)
    measure_references.main(command(trained, "--eval_episodes", "2", "--cloning_steps", "20"))
    assert chosen_by == list(range(45))  # never the test tasks
    seen, space = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).numpy(), point_robot().make().action_space
    acts = [BehaviourPolicies({name: value[None] for name, value in made[task].items()}, space.low, space.high).act(
        seen[None], deterministic=True)[0] for task in range(100)]  # fmt: skip
    rows = np.arange(200)
    np.testing.assert_allclose(own[0].policy(seen), np.stack(acts)[rows // 2, rows], atol=1e-6)  # row of task t: its expert
    assert not np.allclose(own[0].policy(seen), np.stack(acts)[(rows // 2 + 1) % 100, rows], atol=1e-6)
    found = read_json(tmp_path / "references" / "point_robot.json")
    scores = found["task_blind"]["training_tasks"]
    experts = [name for name in scores if name.startswith("expert of task")]
    assert (
        len(experts) == 8 and len(scores) == 11
    )  # the finalists of all training tasks', the shared agent, the cloned, no action
    assert scores[found["task_blind"]["chosen"]] == max(scores.values())
    levels = {name: np.array(values) for name, values in found["per_task"].items()}
    assert set(levels) == {"trivial", "task_blind", "best_known"} and all(len(values) == 100 for values in levels.values())
    assert len(found["best_known"]) == 100 and set(found["best_known"]) <= {*scores, "its own expert"}
    assert levels["best_known"].mean() >= levels["task_blind"].mean() - 0.5  # chosen on other episodes
    goals = point_robot().make().unwrapped.tasks["goal"]
    np.testing.assert_allclose(levels["trivial"], -20 * np.linalg.norm(goals, axis=1), atol=0.05)  # it stays at the start


def test_levels_are_chosen_by_training_tasks_and_the_best_known_by_each():
    """Tasks 0 to 2 are trained on. `good` is best there, `lucky` on task 3, where `good` is worst; own experts win on 0 and 3."""
    trials = {"good": np.array([5.0, 6, 4, 0]), "lucky": np.array([1.0, 2, 3, 90]), "poor": np.array([0.0, 0, 9, 1])}
    trials["inferring"] = np.array([6.9, 2, 1, 90.5])  # not blind: it is no candidate of the task-blind level
    blind = ("good", "lucky", "poor")
    chosen, scores, best = measure_references.choose(trials, blind, np.array([7.0, 3, 2, 91]), np.arange(3))
    assert chosen == "good" and scores == {"good": 5, "lucky": 2, "poor": 3}
    assert best == ["its own expert", "good", "poor", "its own expert"]
    tiny = {"no action": np.full(4, 1e-6), "good": np.full(4, 9e-6)}
    assert measure_references.choose(tiny, tiny, np.zeros(4), np.arange(3))[0] == "good"


def test_choice_of_checkpoints_to_keep():
    returns = np.array([-300, -299, -298, -100, -50, -49, -48, -48, -48, -48.0])
    assert export_behaviour.choose(returns, 3).tolist() == [0, 3, 9]
    assert export_behaviour.choose(returns, 10**3).tolist() == list(range(10))
    assert export_behaviour.choose(returns, 1).tolist() == [9]
    assert export_behaviour.choose(returns[:1], 5).tolist() == [0]


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--updates_per_step", "2"], "sac makes one update per step"),
        (["--entropy_coefficient", "much"], "'much' is not auto or a number of at least 0"),
        (["--relabel_share", "1.5"], "number between 0 and 1"),
        (["--algo", "multi_sac"], "invalid choice"),
    ],
)
def test_bad_flags(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_data_collection.main(command(tmp_path, *flags))
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_settings_are_refused(trained, capsys):
    for flags, message in ((["--relabel_share", "0.1"], "relabel_share"), (["--task_id_end", "7"], "task_ids")):
        with pytest.raises(SystemExit) as stop:
            train_data_collection.main(command(trained, *SHARED, *flags))
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_sources_are_told_apart(trained, tmp_path, capsys):
    def fails(*flags):
        with pytest.raises(SystemExit) as stop:
            dataset(trained, "medium", *flags)
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "no per_task behaviour policies" in fails("--behaviour", "per_task")
    (trained / "saves/point_robot/behaviour/task_000").mkdir()
    try:
        assert "choose --behaviour per_task or multitask" in fails()
        assert "no finished behaviour policy of task 0" in fails("--behaviour", "per_task")
    finally:
        (trained / "saves/point_robot/behaviour/task_000").rmdir()


def test_another_list_of_tasks_is_refused(trained, tmp_path, monkeypatch):
    env = parse_args(get_datasets.make_parser(), "get_datasets", ["--env_type", "point_robot"]).env
    source = Source(shutil.copytree(trained / "saves/point_robot/behaviour", tmp_path / "behaviour"), "multitask")
    load_behaviour(source, env, 3, "command")
    environment = env.make()
    table = environment.tasks["goal"]
    monkeypatch.setattr(type(env), "make", lambda self: environment)
    environment.tasks = {"goal": table + 0.7}  # standardised, they look the same
    with pytest.raises(UserError, match=r"task 0 of the policies in .* train them again: command --no-resume"):
        load_behaviour(source, env, 3, "command")
    environment.tasks = {"goal": table[::-1]}
    path = tmp_path / "behaviour/multitask/config.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "tasks"})  # as former versions did
    with pytest.raises(UserError, match="another list of tasks; train it again: command"):
        load_behaviour(source, env, 3, "command")
    with pytest.raises(UserError, match="not trained for task 70"):
        load_behaviour(source, env, 70, "command")
