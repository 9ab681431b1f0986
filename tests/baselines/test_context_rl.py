"""Context-based methods: losses by hand, what gradients reach, contexts, acting, and each method as a user runs it."""

import dataclasses
import importlib
import math
import os
import signal
import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_refused, listing, point_robot, shell, words

from baselines.actor_critic import BRAC, IQL, Actor, ActorCriticSettings, advantage_weights, dual_divergence, expectile_loss
from baselines.context_rl import ContextAgent, ContextData, ContextRL, ContextSettings, Encoder, MeanPool, Normaliser
from baselines.corro import CVAE, AttentionPool, Corro, CorroSettings, info_nce
from baselines.csro import Csro, CsroSettings, NonPriorAgent, information_bound, variational_loss
from baselines.focal import Focal, FocalSettings, metric_loss
from baselines.iql import HistoryIQL, HistorySettings
from baselines.unicorn import GaussianDecoder, Unicorn, UnicornSettings
from src.data.relabel import EnvironmentRewards
from src.data.trajectories import Trajectories, load, save
from src.evaluation.agent import PolicyAgent
from src.run.files import read_json
from src.run.logger import Logger
from src.run.seeding import numpy_generator, torch_generator

LEARNERS = {
    "focal": (Focal, FocalSettings),
    "csro": (Csro, CsroSettings),
    "corro": (Corro, CorroSettings),
    "unicorn": (Unicorn, UnicornSettings),
}


def training_data(lengths=(20, 7, 13, 20), tasks=3):
    """What `build` gets of TrainingData: random episodes of so many steps for each of three tasks of Point-Robot."""
    generator = np.random.default_rng(0)
    lengths = np.tile(lengths, tasks)
    shapes = ((21, 2), (20, 2), (20,))
    observations, actions, rewards = (generator.standard_normal((len(lengths), *s)).astype(np.float32) for s in shapes)
    ids = np.repeat(np.arange(5, 5 + tasks), len(lengths) // tasks)
    infos = {"terminated": (np.arange(20) + 1 == lengths[:, None]).astype(np.float32)}
    episodes = Trajectories(observations, np.tanh(actions) / 10, rewards, lengths, ids, infos=infos)
    return types.SimpleNamespace(environment=point_robot().make(), episodes=episodes)


def tiny_method(name, data=None, rl="iql", **contexts):
    learner, own = LEARNERS[name]
    chosen = {
        "contexts": ContextSettings(**{"batch_size": 5, "tasks_per_step": 6, "context_size": 30, "steps": 9} | contexts),
        "rl": ActorCriticSettings(rl=rl, width=8, layers=1),
        "learner": own(code_size=3, encoder_width=8, encoder_layers=1),
    }
    return ContextRL(data or training_data(), chosen, learner, torch.device("cpu"), seed=0)


def test_a_space_of_float64_is_normalised_in_float32():
    low, high = np.array([-1.0, 0]), np.array([1.0, 3])
    spaces = [gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype) for dtype in (np.float64, np.float32)]
    ours, theirs = (Normaliser.of(training_data().episodes, space).state_dict() for space in spaces)
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == torch.float32 for name in theirs)


# ---------------------------------------------------------------------------------------------------------- losses by hand


def test_metric_loss_by_hand():
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    together = math.sqrt(1e-3) / (1 + 1e-3)  # one pair of one task, at distance 0
    apart = 2 * (1 / 1.1) / (2 + 1e-3)  # two pairs of different tasks, at distance 1
    assert metric_loss(z, torch.tensor([4, 4, 2])).item() == pytest.approx(together + apart, rel=1e-6)


def test_info_nce_by_hand():
    query, key, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2)))  # ⟨q, ·⟩ = 1, 0, −1 over a temperature of 0.5
    assert info_nce(query, key, negatives, 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_information_bound_by_hand_and_by_pairs():
    codes = torch.tensor([[[0.0], [1.0], [9.0]]])
    mask = torch.tensor([[True, True, False]])
    # q knows each code: 0 of its own, −1 for either other of four pairs
    assert information_bound(codes, codes, torch.ones(1, 3, 1), mask).item() == pytest.approx(0.5)
    codes, mean = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    variance, mask = torch.linspace(0.5, 2, 24).reshape(2, 4, 3), torch.tensor([[True] * 4, [True, True, True, False]])
    by_pairs = []
    for row, count in ((0, 4), (1, 3)):
        z, m, v = codes[row, :count], mean[row, :count], variance[row, :count]
        own = -((z - m).square() / v).mean()
        others = -((z[None] - m[:, None]).square() / v[:, None]).mean()
        by_pairs.append((own - others).item())
    assert information_bound(codes, mean, variance, mask).item() == pytest.approx(np.mean(by_pairs), rel=1e-5)


def test_variational_loss_by_hand():
    one, mask = torch.ones(1, 2, 1), torch.tensor([[True, False]])
    assert variational_loss(one, 0 * one, 2 * one, mask).item() == pytest.approx(1 / 4 + math.log(2) / 2)


def test_cvae_loss_by_hand():
    cvae = CVAE(known=1, told=3, size=2, width=4)
    for parameter in cvae.parameters():
        torch.nn.init.zeros_(parameter)
    cvae.encoder[-1].bias.data[:2] = 1.0  # mean 1, variance 1 in both dimensions: KL 2 · ½
    told = torch.tensor([[3.0, 1.0, 2.0]])  # decoded as 0: 9 for the reward, (1 + 4) / 2 for the state
    assert cvae.loss(torch.zeros(1, 1), told, torch.zeros(1, 2), 0.2).item() == pytest.approx(9 + 2.5 + 0.2)


def test_the_decoder_s_likelihood_by_hand():
    decoder = GaussianDecoder(inputs=2, outputs=1, width=4, layers=1)
    for parameter in decoder.body.parameters():
        torch.nn.init.zeros_(parameter)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    log_variance = 0.5 - softplus(0.5)
    log_variance = -10 + softplus(log_variance + 10)
    targets = torch.tensor([[[2.0], [50.0]]])
    loss = decoder.loss(torch.zeros(1, 2, 2), targets, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(4 * math.exp(-log_variance) + log_variance + 0.01 * 10.5, rel=1e-5)


def test_iql_and_dual_kl_by_hand():
    assert expectile_loss(torch.tensor([1.0, -2.0]), 0.7).item() == pytest.approx((0.7 * 1 + 0.3 * 4) / 2)
    weights = advantage_weights(torch.tensor([0.5, -1.0, 9.0]), 3.0)
    assert weights.tolist() == pytest.approx([math.exp(1.5), math.exp(-3), 100.0])
    divergence = dual_divergence(torch.tensor(0.0), torch.tensor(0.0))
    assert divergence.item() == pytest.approx(1 + math.log(math.log(2)) - math.log(2), abs=1e-6)


def test_iql_targets_by_hand():
    """A critic's error where every network says a constant: Q 2, target Q 3, V 1."""
    settings = ActorCriticSettings(width=4, layers=1, gamma=0.5)
    algorithm = IQL(Actor(1, 1, 1, settings), (1, 1, 1), settings, "cpu")
    constants = [(algorithm.critic.critics[0], 2), (algorithm.critic.critics[1], 2), (algorithm.target.critics[0], 3)]
    for network, constant in (*constants, (algorithm.target.critics[1], 4), (algorithm.value, 1)):
        torch.nn.init.zeros_(network[-1].weight)
        torch.nn.init.constant_(network[-1].bias, constant)
    one = torch.ones(1, 2, 1)
    batch = {"observations": one, "next_observations": one, "actions": 0 * one, "rewards": torch.tensor([[1.0, 1.0]])}
    batch["terminated"] = torch.tensor([[0.0, 1.0]])
    losses = algorithm.losses(batch, one, one)
    assert losses["critic_loss"].item() == pytest.approx(((2 - 1.5) ** 2 + (2 - 1) ** 2) / 2)
    assert losses["value_loss"].item() == pytest.approx(0.7 * (3 - 1) ** 2)  # the smaller of the target critics


# ------------------------------------------------------------------------------------------------- what the gradients reach


@pytest.mark.parametrize("rl", ["iql", "brac"])
@pytest.mark.parametrize("name", LEARNERS)
def test_only_an_attention_learns_from_the_critics_and_no_encoder_does(name, rl):
    method = tiny_method(name, rl=rl)
    learner = method.learner

    def no_step(tasks, features, mask):  # the encoder's own loss takes no step here
        return {"metric_loss": torch.zeros(())}, learner.encoder(features).detach()

    before = {key: value.clone() for key, value in learner.encoder.state_dict().items()}
    actor = [parameter.clone() for parameter in method.policy.actor.parameters()]
    learner.update = no_step
    for step in (1, 2, 3):
        losses = method.update(step)
    assert all(torch.isfinite(loss) for loss in losses.values())
    changed = {key.split(".")[0] for key, value in learner.encoder.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == ({"pool"} if name == "corro" else set())
    assert not any(torch.equal(a, b) for a, b in zip(actor, method.policy.actor.parameters(), strict=True))


def test_of_iql_s_losses_the_critics_alone_reach_z():
    method = tiny_method("focal")
    codes = torch.randn(6, 3).requires_grad_()
    losses = method.actor_critic.losses(
        method.data.transitions(method.data.draw_tasks()), *[codes[:, None].expand(-1, 5, -1)] * 2
    )
    reached = {key: torch.autograd.grad(loss, codes, allow_unused=True)[0] is not None for key, loss in losses.items()}
    assert reached == {"critic_loss": True, "value_loss": False, "policy_loss": False}


@pytest.mark.parametrize("name", LEARNERS)
def test_an_encoder_learns_by_its_own_loss(name):
    method = tiny_method(name)
    before = [parameter.clone() for parameter in method.learner.encoder.body.parameters()]
    tasks = method.data.draw_tasks()
    _, codes = method.learner.update(tasks, *method.data.contexts(tasks))
    assert not codes.requires_grad
    assert not any(torch.equal(a, b) for a, b in zip(before, method.learner.encoder.body.parameters(), strict=True))


def test_brac_s_penalty_is_on_the_gradient_and_alpha_stays_in_its_bounds():
    settings = ActorCriticSettings(rl="brac", width=4, layers=1, kl_weight=0.01, kl_target=1e6)
    algorithm = BRAC(Actor(1, 1, 1, settings), (1, 1, 1), settings, "cpu", generator=torch_generator(0))
    batch = {key: torch.zeros(2, 3, 1) for key in ("observations", "next_observations", "actions")}
    batch |= {key: torch.zeros(2, 3) for key in ("rewards", "terminated")}
    torch.nn.init.zeros_(algorithm.dual[-1].weight)
    torch.nn.init.constant_(algorithm.dual[-1].bias, 50.0)  # large scores, no slope: no penalty
    expected = -dual_divergence(torch.tensor(50.0), torch.tensor(50.0)).item()
    assert algorithm.dual_loss(batch, torch.zeros(2, 3, 1)).item() == pytest.approx(expected, rel=1e-5)
    algorithm.update(lambda: batch, torch.zeros(2, 1))
    assert algorithm.kl_weight.value.item() == 0.0  # the divergence is far below its target


# ---------------------------------------------------------------------------------------------------------------- contexts


@pytest.mark.parametrize("pool", [MeanPool(), AttentionPool(3)])
def test_z_does_not_know_the_order_of_transitions_nor_the_padding(pool):
    encoder = Encoder((2, 2), 3, 8, 1, pool=pool)
    features, mask = torch.randn(2, 5, 7), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    z = encoder.pool(encoder(features), mask)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(encoder.pool(encoder(features[:, order]), mask[:, order]), z)
    features[1, 3:] = 100.0
    torch.testing.assert_close(encoder.pool(encoder(features), mask), z)
    features[1, 2] = 100.0
    assert not torch.allclose(encoder.pool(encoder(features), mask)[1], z[1])


def test_contexts_begin_with_whole_episodes_of_one_task():
    """Rewards name (episode, step), so that every place of a context can be looked up."""
    data = training_data()
    episodes = data.episodes
    names = 100.0 * np.arange(len(episodes))[:, None] + np.arange(20)
    episodes = dataclasses.replace(episodes, rewards=names.astype(np.float32))
    normaliser = Normaliser.of(episodes, data.environment.action_space)
    settings = ContextSettings(tasks_per_step=200, context_size=30, context_episodes=2)
    sampler = ContextData(episodes, normaliser, settings, "cpu", torch_generator(0))
    tasks = sampler.draw_tasks()
    features, mask = sampler.contexts(tasks)
    rewards = (features[..., 4] * normaliser.reward_std + normaliser.reward_mean).numpy()
    lengths_seen = set()
    for task, context, inside in zip(tasks, rewards, mask.numpy(), strict=True):
        found = [divmod(round(float(value)), 100) for value in context[inside]]
        numbers = list(dict.fromkeys(episode for episode, _ in found))
        assert {int(episodes.task_ids[number]) for number in numbers} == {sampler.tasks[task]}
        assert all(step < episodes.lengths[number] for number, step in found)
        lengths_seen.add(len(found))
        if len(found) < 30:  # not thinned out
            steps = [step for _, step in found]
            first = int(episodes.lengths[found[0][0]])
            assert steps == [*range(first), *range(first)][: len(steps)] or steps[:first] == [*range(min(first, len(steps)))]
            assert steps[first:] == [*range(len(steps[first:]))]
    assert min(lengths_seen) < 4 and max(lengths_seen) == 30
    batch = sampler.transitions(tasks)
    drawn = (batch["rewards"] * normaliser.reward_std).round().long().numpy() // 100
    assert (episodes.task_ids[drawn] == sampler.tasks[tasks][:, None]).all()
    assert batch["actions"].abs().max() <= 1 and batch["terminated"].sum() > 0


def test_relabelled_contexts_pay_as_their_task_does_and_half_of_them_are_others():
    data = training_data()
    goals = data.environment.unwrapped.tasks["goal"]
    paid = -np.linalg.norm(data.episodes.observations[:, 1:] - goals[data.episodes.task_ids][:, None], axis=-1)
    data.episodes = dataclasses.replace(data.episodes, rewards=paid.astype(np.float32))
    normaliser = Normaliser.of(data.episodes, data.environment.action_space)
    settings = ContextSettings(tasks_per_step=300, context_size=30, batch_size=4, relabel=True)
    relabel = EnvironmentRewards(data.environment, data.episodes)
    sampler = ContextData(data.episodes, normaliser, settings, "cpu", torch_generator(0), relabel)
    tasks = sampler.draw_tasks()
    batch = sampler.transitions(tasks)
    positions = batch["next_observations"] * normaliser.observation_std + normaliser.observation_mean
    distances = np.linalg.norm(positions.numpy() - goals[sampler.tasks[tasks]][:, None], axis=-1)
    np.testing.assert_allclose(-batch["rewards"].numpy() * normaliser.reward_std.numpy(), distances, atol=1e-4)
    own = np.abs(
        data.episodes.observations[data.episodes.task_ids == sampler.tasks[0]][:, :20, 0, None]
        - positions[tasks == 0, 0, 0].numpy()
    )
    assert 0.5 < (own.min((0, 1)) < 1e-5).mean() < 0.85  # its own half, and a third of the rest
    features, mask = sampler.contexts(tasks)
    paid = features[..., 4] * normaliser.reward_std + normaliser.reward_mean
    before = features[..., :2] * normaliser.observation_std + normaliser.observation_mean
    after = before + features[..., 5:] * normaliser.change_std + normaliser.change_mean
    distances = np.linalg.norm(after.numpy() - goals[sampler.tasks[tasks]][:, None], axis=-1)
    np.testing.assert_allclose(-paid.numpy()[mask], distances[mask], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------ acting


def lived(rows=3, length=20, seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"observations": (21, 2), "actions": (20, 2), "rewards": (20,)}
    episode = {key: generator.standard_normal((rows, *shape)).astype(np.float32) for key, shape in shapes.items()}
    return episode | {"lengths": np.full(rows, length), "infos": {}}


def test_the_prior_is_the_mean_z_of_the_updates(monkeypatch):
    method = tiny_method("focal")
    for step in (1, 2):
        codes = torch.full((6, 30, 3), float(step))
        monkeypatch.setattr(method.learner, "update", lambda tasks, features, mask, z=codes: ({}, z[:, : mask.shape[1]]))
        method.update(step)
    torch.testing.assert_close(method.policy.prior, torch.full((3,), 1.5))


@pytest.mark.parametrize("name", ["focal", "corro"])
def test_z_is_the_prior_then_the_running_episode_or_all_that_was_lived(name):
    policy = tiny_method(name).policy
    policy.prior += 1.5
    agent, episode = ContextAgent(policy, torch.device("cpu")), lived()
    agent.adapt([])
    agent.start(episode["observations"][:, 0])
    assert torch.equal(agent.z, policy.prior.expand(3, -1))
    first = agent.act()
    for step in range(20):
        agent.observe(episode["actions"][:, step], episode["rewards"][:, step], episode["observations"][:, step + 1])
    running = agent.z.clone()
    agent.adapt([episode])
    torch.testing.assert_close(agent.z, running)
    agent.start(episode["observations"][:, 0])
    assert not np.allclose(agent.act(), first)
    known = agent.z.clone()
    agent.observe(episode["actions"][:, 0], episode["rewards"][:, 0], episode["observations"][:, 1])
    assert torch.equal(agent.z, known)  # fixed during the episode
    agent.adapt([episode, lived(seed=1)])
    assert not torch.allclose(agent.z, known)


def test_what_follows_an_episode_s_end_is_not_read():
    agent = ContextAgent(tiny_method("focal").policy, torch.device("cpu"))
    episode = lived(length=8)
    agent.adapt([episode])
    z = agent.z.clone()
    for key in ("observations", "actions", "rewards"):
        episode[key][:, 9:] = 77.0
    agent.adapt([episode])
    assert torch.equal(agent.z, z)


def test_histories_are_read_in_acting_as_in_training():
    settings = ContextSettings(tasks_per_step=4, context_size=30, steps=9), ActorCriticSettings(width=8, layers=1)
    method = HistoryIQL(training_data(), *settings, HistorySettings(memory_size=6), torch.device("cpu"), seed=0)
    before = [parameter.clone() for parameter in method.policy.parameters()]
    method.update(1)
    assert not any(torch.equal(a, b) for a, b in zip(before, method.policy.parameters(), strict=True))  # the GRU's too
    agent, first, second = method.agent(1), lived(length=8), lived(seed=1)
    agent.adapt([first])
    agent.start(second["observations"][:, 0])
    for step in range(20):
        agent.observe(second["actions"][:, step], second["rewards"][:, step], second["observations"][:, step + 1])
    both = []
    for episode, length in ((first, 8), (second, 20)):
        parts = episode["observations"][:, :length], episode["actions"][:, :length], episode["rewards"][:, :length]
        following = episode["observations"][:, 1 : length + 1]
        both.append(method.policy.normaliser.features(*map(torch.from_numpy, (*parts, following))))
    torch.testing.assert_close(agent.hidden[0], method.policy.hidden(torch.cat(both, 1))[:, -1])
    agent.adapt([])
    agent.start(second["observations"][:, 0])
    assert not agent.hidden.any()


def test_csro_explores_the_first_half_of_its_warm_up_episodes():
    method = tiny_method("csro")
    space = method.space

    def explored(warmup):
        agent, found = method.agent(warmup), []
        for number in range(warmup + 1):
            agent.adapt([lived(seed=k) for k in range(number)])
            agent.start(np.zeros((3, 2), np.float32))
            found.append(len({tuple(row) for row in agent.act()}) == 3 and number < warmup)
        return [isinstance(agent, NonPriorAgent) and number < agent.explored for number in range(warmup + 1)], found

    assert explored(3)[0] == [True, True, False, False] and explored(0)[0] == [False]
    agent = NonPriorAgent(PolicyAgent(np.zeros_like), 1, space, numpy_generator(0))
    agent.start(np.zeros((3, 2)))
    agent.adapt([])
    assert np.abs(agent.act()).min() > 0
    agent.adapt([lived()])
    assert not agent.act().any()


# -------------------------------------------------------------------------------------------------------------- as it is run


def run(name, root, *flags):
    return importlib.import_module(f"baselines.{name}").main(words(root, *flags))


def weights(root, name):
    return (root / "saves" / "point_robot" / "random" / f"{name}+debug" / "seed_0" / "model.safetensors").read_bytes()


def changed_test_tasks(root, target):
    """The dataset of `root` under `target`, the test tasks' arrays replaced."""
    dataset, env = load(root / "datasets", "point_robot", "random"), point_robot()
    test = dataset.task_ids >= env.test_tasks[0]
    assert test.any() and not test.all()
    rewards = np.where(test[:, None], np.float32(-7.0), dataset.rewards)
    observations = np.where(test[:, None, None], dataset.observations * 3 + 1, dataset.observations)
    changed = dataclasses.replace(dataset, rewards=rewards, observations=observations, metadata={})
    save(changed, target / "datasets", env, "random", {"seed": 0})


@pytest.mark.long
@pytest.mark.parametrize("name", [*LEARNERS, "iql"])
def test_a_method_from_the_shell_again_stopped_and_without_test_data(name, data_root, tmp_path, monkeypatch, capsys):
    whole, stopped, other = (tmp_path / folder for folder in ("whole", "stopped", "other"))
    for root in (whole, stopped):
        root.mkdir()
        (root / "datasets").symlink_to(data_root / "datasets")
    if name == "focal":  # the scripts differ in what they train alone
        done = shell(f"-m baselines.{name}", *words(whole))
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        run(name, whole)
        said = capsys.readouterr().out
    assert f"{name}+debug few_shot strict: return" in said and f"{name}+debug zero_shot strict: return" in said
    saved = {path: content for path, content in listing(whole / "saves").items() if not path.endswith("lock")}
    run(name, whole)  # finds it finished
    assert {path: content for path, content in listing(whole / "saves").items() if not path.endswith("lock")} == saved

    advance = Logger.advance

    def stop_once(logger, *args, **kwargs):
        advance(logger, *args, **kwargs)
        monkeypatch.setattr(Logger, "advance", advance)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Logger, "advance", stop_once)
    with pytest.raises(SystemExit) as end:
        run(name, stopped)
    assert end.value.code == 128 + signal.SIGTERM and not (stopped / "results").exists()
    run(name, stopped)
    assert weights(stopped, name) == weights(whole, name)

    changed_test_tasks(data_root, other)
    run(name, other)
    assert weights(other, name) == weights(whole, name)


def test_brac_and_relabelling_have_results_of_their_own(data_root, tmp_path, capsys):
    (tmp_path / "datasets").symlink_to(data_root / "datasets")
    plain, relabelled = run("focal", tmp_path), run("focal", tmp_path, "--relabel")
    assert "learned rewards: R²" in capsys.readouterr().out
    true = run("focal", tmp_path, "--relabel", "--true_rewards")
    assert len({*plain, *relabelled, *true, *run("focal", tmp_path, "--rl", "brac")}) == 8
    found = [read_json(path) for path in (plain[0], relabelled[0], true[0])]
    assert [result["privileges"] for result in found] == ["none", "none", "reward function"]
    assert ["learned_reward" in result for result in found] == [False, True, False]
    assert read_json(run("iql", tmp_path, "--relabel")[0])["learned_reward"] == found[1]["learned_reward"]  # of the same model
    with pytest.raises(SystemExit):
        run("focal", tmp_path, "--true_rewards")
    assert "--true_rewards has no effect without --relabel" in capsys.readouterr().err


def test_shares_of_which_nothing_is_learned_are_refused(tmp_path, capsys):
    """Every context empty; a target network that stays as it was drawn."""
    for flags, message in ((["--prior_share", "1"], "below 1"), (["--tau", "0"], "'0' is not a number above 0, at most 1")):
        assert_refused(capsys, importlib.import_module("baselines.focal"), words(tmp_path, *flags), message)


def test_recorded_contexts_measure_the_same_policy_under_a_protocol_of_their_own(data_root, tmp_path, capsys):
    (tmp_path / "datasets").symlink_to(data_root / "datasets")
    own = run("focal", tmp_path)
    before, kept = [path.read_bytes() for path in own], weights(tmp_path, "focal")
    with pytest.raises(SystemExit):
        run("focal", tmp_path, "--contexts", "recorded")
    assert "add --eval_only" in capsys.readouterr().err
    (shown,) = run("focal", tmp_path, "--contexts", "recorded", "--eval_only")
    assert shown.parent.name == "few_shot-recorded_context" and read_json(shown)["protocol"] == "recorded_context"
    assert weights(tmp_path, "focal") == kept and [path.read_bytes() for path in own] == before
    assert not any("warmup_returns" in task for task in read_json(shown)["tasks"])


@pytest.mark.parametrize("flag", ["--batch_size=8", "--kl-weight=3", "--rl=brac"])
def test_iql_over_histories_refuses_what_it_does_not_read(capsys, tmp_path, flag):
    argv = ["--env_type", "point_robot", "--recipe", "debug", "--output_dir", str(tmp_path), flag]
    name = flag.partition("=")[0].replace("-", "_").replace("__", "--")
    assert_refused(
        capsys, importlib.import_module("baselines.iql"), argv, f"{name} has no effect on IQL over whole histories: leave it out"
    )
    assert not list(tmp_path.iterdir())
