"""The world model: contexts that know the past of their own episode only, and relabelling across tasks."""

import argparse
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import point_robot, random_episodes, tiny_policy, tiny_world_model

import train_context
from src.data import trajectories
from src.data.relabel import EnvironmentRewards, paid_by
from src.data.transitions import Decoding, TransitionSampler, context_windows, make_sampler
from src.models import probe
from src.models.meta_dt_agent import MetaDTAgent
from src.models.world_model import (
    RunningContexts,
    WorldModel,
    episode_contexts,
    load_world_model,
    prediction_errors,
)
from src.models.world_model_training import WorldModelOptimisation, split_episodes, validate
from src.run.errors import UserError
from src.run.files import load_state, load_tensors
from src.run.seeding import numpy_generator

HORIZON = 4


both_kinds = pytest.mark.parametrize("horizon", [HORIZON, 0], ids=["windows", "running"])


def windows_by_hand(observations, actions, rewards, step):
    """The encoder's input before time step `step` (padding full of sevens, masked), written as a loop."""
    rows = []
    for t in range(step - HORIZON, step):
        for episode in range(len(rewards)):
            real = t >= 0
            values = (observations, actions, rewards[..., None])
            rows.append([v[episode, t] if real else torch.full_like(v[episode, 0], 7.0) for v in values] + [torch.tensor(real)])
    columns = [torch.stack(column).unflatten(0, (HORIZON, -1)).transpose(0, 1) for column in zip(*rows, strict=True)]
    return columns  # (E, h, d_s), (E, h, d_a), (E, h, 1), (E, h)


# ------------------------------------------------------------------------------------------------------------- contexts


def test_windows_and_whole_episodes_give_the_same_contexts():
    model, episodes = tiny_world_model(), random_episodes()
    contexts = episode_contexts(model, *episodes)
    assert contexts.shape == (3, 8, 16)
    for step in range(8):
        torch.testing.assert_close(contexts[:, step], model.encode(*windows_by_hand(*episodes, step)), atol=1e-6, rtol=1e-6)
    for chunk in (1, 8, 20):
        torch.testing.assert_close(episode_contexts(model, *episodes, chunk=chunk), contexts, atol=1e-6, rtol=1e-6)


def test_context_windows_by_hand():
    indices, mask = context_windows(torch.tensor([0, 2, 5]), 3)
    assert mask.tolist() == [[False] * 3, [False, True, True], [True] * 3]
    assert indices.tolist() == [[0, 0, 0], [0, 0, 1], [2, 3, 4]]


@both_kinds
def test_a_context_does_not_know_its_own_step_nor_anything_later(horizon):
    model, episodes = tiny_world_model(horizon=horizon), random_episodes()
    contexts = episode_contexts(model, *episodes)
    for step in range(7):
        changed = [values.clone() for values in episodes]
        for values in changed:
            values[:, step:] = 100.0
        found = episode_contexts(model, *changed)
        torch.testing.assert_close(found[:, : step + 1], contexts[:, : step + 1], atol=1e-6, rtol=0)
        assert not torch.isclose(found[:, step + 1], contexts[:, step + 1]).all(1).any()  # and z_t+1 does know it


def test_a_context_knows_the_last_h_transitions_and_none_before():
    model, episodes = tiny_world_model(), random_episodes()
    contexts = episode_contexts(model, *episodes)
    for values in episodes:
        values[:, 0] = -100.0
    found = episode_contexts(model, *episodes)
    assert not torch.isclose(found[:, 1 : HORIZON + 1], contexts[:, 1 : HORIZON + 1]).all(2).any()
    torch.testing.assert_close(found[:, HORIZON + 1 :], contexts[:, HORIZON + 1 :])


def test_a_running_context_knows_the_whole_past():
    model, (observations, actions, rewards) = tiny_world_model(horizon=0), random_episodes()
    contexts = episode_contexts(model, observations, actions, rewards)
    for step in range(8):  # a context is the end of the same recurrence over the past alone
        inputs = model.embed(observations[:, :step], actions[:, :step], rewards[:, :step, None])
        hidden = model.gru(inputs)[1][0] if step else torch.zeros(3, 128)
        torch.testing.assert_close(contexts[:, step], model.to_context(hidden), atol=1e-6, rtol=1e-6)
    observations[:, 0] = -100.0
    found = episode_contexts(model, observations, actions, rewards)
    assert not torch.isclose(found[:, 1:], contexts[:, 1:]).all(2).any()


@both_kinds
def test_contexts_step_by_step_are_those_of_one_pass(horizon):
    model, (observations, actions, rewards) = tiny_world_model(horizon=horizon), random_episodes()
    contexts, running = episode_contexts(model, observations, actions, rewards), RunningContexts(model, 3)
    for step in range(7):
        torch.testing.assert_close(running.current, contexts[:, step], atol=1e-6, rtol=1e-6)
        running.step(observations[:, step], actions[:, step], rewards[:, step])
    torch.testing.assert_close(running.current, contexts[:, 7], atol=1e-6, rtol=1e-6)


@both_kinds
def test_another_episode_changes_nothing(horizon):
    model, episodes = tiny_world_model(horizon=horizon), random_episodes()
    contexts = episode_contexts(model, *episodes)
    for values in episodes:
        values[1] = 100.0
    found = episode_contexts(model, *episodes)
    assert torch.equal(found[[0, 2]], contexts[[0, 2]])
    alone = episode_contexts(model, *(values[:1] for values in episodes))
    torch.testing.assert_close(alone, contexts[:1])


@both_kinds
def test_the_first_context_is_one_vector(horizon):
    model = tiny_world_model(horizon=horizon)
    first = torch.cat([episode_contexts(model, *random_episodes(seed=seed))[:, 0] for seed in (0, 1)])
    assert torch.equal(first, first[:1].expand_as(first)) and first.abs().sum() > 0


@pytest.mark.parametrize("horizon", [3, 0])
def test_acting_and_training_know_the_same_contexts(horizon):
    model, (observations, actions, rewards) = tiny_world_model(horizon=horizon), random_episodes(steps=9)
    agent = MetaDTAgent(tiny_policy(), model, 5, 2, 0.0)
    agent.adapt([])
    agent.start(observations[:, 0].numpy())
    for step in range(9):
        agent.act()
        agent.observe(actions[:, step].numpy(), rewards[:, step].numpy(), observations[:, step + 1].numpy())
    found, expected = agent.contexts[:], episode_contexts(model, observations, actions, rewards)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_encoder_by_hand():
    """Embeddings, standardisation, padding and the GRU's gates (r, z, n) in float64 numpy."""
    model = tiny_world_model()
    observations, actions, rewards = random_episodes(1, 2)
    p = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def embedded(name, value):
        standardised = (value - p[f"{name}_mean"]) / p[f"{name}_std"] if value is not None else np.zeros_like(p[f"{name}_mean"])
        return np.maximum(p[f"{name}_embedding.0.weight"] @ standardised + p[f"{name}_embedding.0.bias"], 0)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    hidden = np.zeros(128)
    for t in (None, None, 0, 1):  # two rows of padding, two transitions
        parts = (observations, actions, rewards[..., None])
        row = [None if t is None else values[0, t].double().numpy() for values in parts]
        x = np.concatenate([embedded(*pair) for pair in zip(("observation", "action", "reward"), row, strict=True)])
        from_x = np.split(p["gru.weight_ih_l0"] @ x + p["gru.bias_ih_l0"], 3)
        from_h = np.split(p["gru.weight_hh_l0"] @ hidden + p["gru.bias_hh_l0"], 3)
        reset, update = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
        hidden = (1 - update) * np.tanh(from_x[2] + reset * from_h[2]) + update * hidden
    expected = p["to_context.weight"] @ hidden + p["to_context.bias"]
    for found in (
        model.encode(*windows_by_hand(observations, actions, rewards, 2))[0],
        episode_contexts(model, observations, actions, rewards)[0, 2],
    ):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_initialisation():
    model = WorldModel(3, 2, HORIZON)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert not parameter.any(), name
        elif "gru" in name:
            square = parameter.T @ parameter
            torch.testing.assert_close(square, torch.eye(len(square)), atol=1e-5, rtol=0)
        else:
            assert parameter.abs().max() <= math.sqrt(6 / sum(parameter.shape)) and parameter.std() > 0
    assert all(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- units and gradients


@both_kinds
def test_a_change_of_units_changes_nothing(horizon):
    """Data in centimetres with statistics in centimetres: same contexts, same losses, errors in centimetres."""
    scales, episodes = (100.0, 10.0, 1000.0), random_episodes(4, 9)
    found = []
    for factors in ((1.0, 1.0, 1.0), scales):
        observations, actions, rewards = (values * factor for values, factor in zip(episodes, factors, strict=True))
        model = tiny_world_model(horizon=horizon)
        now, after = observations[:, :-1].flatten(0, 1), observations[:, 1:].flatten(0, 1)
        model.set_normaliser(now, actions.flatten(0, 1), rewards.flatten()[:, None], after)
        sampler = TransitionSampler(
            observations, actions, rewards, torch.tensor([9, 9, 4, 7]), torch.tensor([0, 0, 1, 1]), horizon
        )
        found.append((episode_contexts(model, observations, actions, rewards), validate(model, sampler, torch.device("cpu"))))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=1e-4)
    for name, factor in (("reward_loss", 1), ("state_loss", 1), ("reward_rmse", 1000), ("state_rmse", 100), ("reward_std", 1000)):
        assert found[1][1][name] == pytest.approx(factor * found[0][1][name], rel=1e-3), name


@both_kinds
def test_validation_by_hand(horizon):
    model = tiny_world_model(horizon=horizon)
    observations, actions, rewards = random_episodes(2, 5)
    lengths = torch.tensor([5, 3])
    sampler = TransitionSampler(observations, actions, rewards, lengths, torch.tensor([0, 1]), horizon)
    contexts = episode_contexts(model, observations, actions, rewards)
    reward_errors, state_errors, true = [], [], []
    for episode, length in enumerate(lengths):
        for t in range(length):
            here, z = observations[episode, t : t + 1], contexts[episode, t : t + 1]
            reward, state = model.decode(here, actions[episode, t : t + 1], observations[episode, t + 1 : t + 2], z)
            reward_errors.append(reward[0, 0] * model.reward_std[0] + model.reward_mean[0] - rewards[episode, t])
            state_errors.append(state[0] * model.observation_std + model.observation_mean - observations[episode, t + 1])
            true.append(rewards[episode, t])
    scores = validate(model, sampler, torch.device("cpu"), chunk=6)
    assert scores["reward_rmse"] == pytest.approx(torch.stack(reward_errors).square().mean().sqrt().item(), rel=1e-4)
    assert scores["state_rmse"] == pytest.approx(torch.stack(state_errors).square().mean().sqrt().item(), rel=1e-4)
    assert scores["reward_std"] == pytest.approx(torch.stack(true).std(correction=0).item(), rel=1e-4)
    assert scores["reward_loss"] == pytest.approx((scores["reward_rmse"] / model.reward_std.item()) ** 2, rel=1e-4)


def test_prediction_errors_by_hand():
    model, (observations, actions, rewards) = tiny_world_model(), random_episodes(2, 5)
    contexts = episode_contexts(model, observations, actions, rewards)
    errors = prediction_errors(model, observations, actions, rewards, contexts, (2.0, 4.0))
    assert errors.shape == (2, 5)
    reward, state = model.decode(observations[1, 3:4], actions[1, 3:4], observations[1, 4:5], contexts[1, 3:4])
    true_reward = model.standardise("reward", rewards[1, 3])
    true_state = (observations[1, 4] - model.observation_mean) / model.observation_std
    expected = (reward[0, 0] - true_reward).abs() / 2 + (state[0] - true_state).abs().sum() / 4
    torch.testing.assert_close(errors[1, 3], expected[0])
    only_reward = prediction_errors(model, observations, actions, rewards, contexts[:, :5], (1.0, math.inf), chunk=5)
    torch.testing.assert_close(only_reward[1, 3], (reward[0, 0] - true_reward).abs()[0])


@both_kinds
def test_every_parameter_gets_a_gradient(horizon):
    torch.manual_seed(0)
    model, (observations, actions, rewards) = WorldModel(3, 2, horizon), random_episodes(40, 6, 3)
    sampler = TransitionSampler(observations, actions, rewards, torch.full((40,), 6), torch.zeros(40, dtype=int), horizon)
    ((window, transition),) = sampler.chunks(240)
    reward_loss, state_loss = model.losses(*transition, model.contexts(*window))
    (reward_loss + state_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# ---------------------------------------------------------------------------------------------------------- transitions


def numbered(lengths=(6, 3, 5), tasks=(4, 4, 9)):
    """Episodes in which every number says where it stands: observation 100 e + t, action 0.5 more, reward 0.25 more."""
    steps = max(lengths)
    place = 100.0 * torch.arange(len(lengths))[:, None] + torch.arange(steps + 1)
    return place[..., None], place[:, :-1, None] + 0.5, place[:, :-1] + 0.25, torch.tensor(lengths), torch.tensor(tasks)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_every_transition_is_gathered_once_with_its_own_window(size):
    sampler = TransitionSampler(*numbered(), HORIZON)
    assert sampler.size == 14
    windows, transitions = zip(*sampler.chunks(size), strict=True)
    assert all(len(part[0]) <= size for part in windows)
    window = [torch.cat(parts) for parts in zip(*windows, strict=True)]
    observations, actions, rewards, after = (torch.cat(parts) for parts in zip(*transitions, strict=True))
    assert observations.flatten().tolist() == PLACES
    assert actions.flatten().tolist() == [place + 0.5 for place in PLACES]
    assert rewards.flatten().tolist() == [place + 0.25 for place in PLACES]
    assert after.flatten().tolist() == [place + 1 for place in PLACES]
    for place, *row in zip(PLACES, *window, strict=True):
        real = row[3].tolist()
        assert real == [place % 100 - 4 + i >= 0 for i in range(4)]
        assert row[0][row[3]].flatten().tolist() == [place - 4 + i for i in range(4) if real[i]]
        assert torch.equal(row[1][row[3]], row[0][row[3]] + 0.5) and torch.equal(row[2][row[3]], row[0][row[3]] + 0.25)


@pytest.mark.parametrize("size", [1, 12, 100])
def test_whole_episodes_are_gathered_once_with_all_their_steps(size):
    windows, transitions = zip(*TransitionSampler(*numbered(), 0).chunks(size), strict=True)
    assert sorted({len(part[0]) for part in windows}) == {1: [1], 12: [1, 2], 100: [3]}[size]
    assert torch.cat([part[0] for part in transitions]).flatten().tolist() == PLACES
    assert torch.cat([part[3] for part in transitions]).flatten().tolist() == [place + 1 for place in PLACES]
    for window, transition in zip(windows, transitions, strict=True):
        assert torch.equal(window[0][window[3]], transition[0]) and torch.equal(window[2][window[3]], transition[2])


@both_kinds
def test_transitions_are_drawn_uniformly_and_by_the_seed(horizon):
    """Single transitions with windows; with running contexts whole episodes, each equally likely."""
    sampler = TransitionSampler(*numbered(), horizon)
    draws = [sampler.draw(18_000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0][1][0], draws[1][1][0])
    assert draws[0][1][0].shape != draws[2][1][0].shape or not torch.equal(draws[0][1][0], draws[2][1][0])
    places, counts = draws[0][1][0].unique(return_counts=True)
    assert places.tolist() == PLACES
    expected = 18_000 / 14 if horizon else 18_000 / 6 / 3  # six steps to an episode's array, three episodes
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    if not horizon:
        window, (observations, _, rewards, after) = draws[0]
        assert torch.equal(window[0][window[3]], observations) and torch.equal(window[2][window[3]], rewards)
        assert torch.equal(after, observations + 1)


@both_kinds
def test_across_episodes_any_transition_of_the_same_task_is_decoded(horizon):
    """Task 4 has episodes of 6 and 3 steps, task 9 one of 5: an episode of the task is drawn, then one of its steps."""
    sampler = TransitionSampler(*numbered(), horizon, across_episodes=True)
    window, (observations, actions, rewards, after) = sampler.draw(18_000, torch.Generator().manual_seed(0))
    assert torch.equal(after, observations + 1) and torch.equal(actions, observations + 0.5)
    assert torch.equal(rewards, observations + 0.25)
    last = window[0].amax((1, 2)) if horizon else window[0].amax((1, 2))[window[3].nonzero()[:, 0]]
    known = window[3].any(1) if horizon else torch.ones(len(last), dtype=torch.bool)
    assert ((last[known] >= 200) == (observations[known, 0] >= 200)).all()
    places, counts = observations[observations[:, 0] < 200].unique(return_counts=True)
    share = counts / counts.sum()
    expected = torch.tensor([1 / 12] * 6 + [1 / 6] * 3)
    assert places.tolist() == PLACES[:9] and ((share - expected).abs() < 0.02).all()
    again = sampler.draw(18_000, torch.Generator().manual_seed(0))[1][0]
    assert torch.equal(again, observations)


PLACES = [100 * e + t for e, length in enumerate((6, 3, 5)) for t in range(length)]


def paid_its_number():
    """As `numbered`, but each task pays its number."""
    observations, actions, rewards, lengths, tasks = numbered()
    return observations, actions, tasks[:, None].expand(rewards.shape).float(), lengths, tasks


def task_as_reward(observations, actions, following, infos, tasks):
    """Rewards that are the task's number; checks what it is given, which is never of the task itself."""
    assert (tasks != np.where(observations[..., 0] >= 200, 9, 4)).all()
    np.testing.assert_array_equal(following, observations + 1)
    np.testing.assert_array_equal(actions, observations + 0.5)
    if infos:
        np.testing.assert_array_equal(infos["speed"], observations[..., 0] + 0.75)
    return np.broadcast_to(tasks, observations.shape[:-1])


def test_running_episodes_and_their_targets_are_paid_under_one_task():
    """As above for whole episodes: every step of an episode is paid under the episode's task, and so are its targets."""
    sampler = TransitionSampler(*paid_its_number(), 0, task_as_reward, 0.3)
    window, (observations, _, rewards, after) = sampler.draw(18_000, torch.Generator().manual_seed(0))
    paid, mask = window[2][..., 0], window[3]
    rows = mask.nonzero()[:, 0]
    task = paid[:, 0]
    assert (paid[mask] == task[rows]).all() and (rewards[:, 0] == task[rows]).all() and torch.equal(after, observations + 1)
    own = torch.where(window[0][:, 0, 0] >= 200, 9.0, 4.0)
    assert (task != own).double().mean() == pytest.approx(0.15, abs=0.03)
    places, counts = observations.unique(return_counts=True)
    assert places.tolist() == PLACES and ((counts - len(rows) / 14).abs() < 160).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("infos", [False, True])
def test_windows_and_targets_are_paid_under_one_task(share, infos):
    infos = {"speed": numbered()[2] + 0.5} if infos else {}
    sampler = TransitionSampler(*paid_its_number(), HORIZON, task_as_reward, share, infos)
    window, (observations, _, rewards, after) = sampler.draw(6000, torch.Generator().manual_seed(0))
    paid, mask = window[2][..., 0], window[3]
    assert torch.equal(after, observations + 1)
    assert (torch.where(mask, paid, rewards) == rewards).all()  # the same task in the window and in the target
    inside = mask.any(1)
    own = torch.where(window[0][inside, -1, 0] >= 200, 9.0, 4.0)
    moved = (rewards[inside, 0] != own).double().mean()
    assert moved == pytest.approx(share / 2, abs=0.03)  # half of the windows that move meet their own task again
    assert (rewards == 9).double().mean() == pytest.approx(share / 2 + (1 - share) * 5 / 14, abs=0.03)
    places = observations.flatten().unique(return_counts=True)[1]
    assert len(places) == 14 and ((places - 6000 / 14).abs() < 110).all()  # targets come from the whole data
    follows = observations[inside] == window[0][inside, -1] + 1
    assert follows.double().mean() == pytest.approx(1 / 14, abs=0.02)  # and not from where the window ends


def test_relabelled_rewards_are_those_of_the_environment(data_root):
    dataset = trajectories.load(data_root / "datasets", "point_robot", "random")
    environment = point_robot().make()
    few = dataset.select([3, 30])
    relabel = EnvironmentRewards(environment, few)
    tasks = np.broadcast_to(few.task_ids[:, None], few.rewards.shape)
    own = relabel(few.observations[:, :-1], few.actions, few.observations[:, 1:], {}, tasks)
    np.testing.assert_allclose(own, few.rewards, atol=1e-6)
    goals = environment.tasks["goal"]
    other = relabel(few.observations[:, :-1], few.actions, few.observations[:, 1:], {}, np.full_like(tasks, 7))
    np.testing.assert_allclose(other, -np.linalg.norm(few.observations[:, 1:] - goals[7], axis=-1), atol=1e-6)

    sampler = make_sampler(few, HORIZON, Decoding("relabelled", relabel_share=0.0), relabel)  # share 0: the data's own rewards
    plain = make_sampler(few, HORIZON)
    found, _ = sampler.draw(500, torch.Generator().manual_seed(0))
    expected, _ = plain.draw(500, torch.Generator().manual_seed(0))
    for a, b, mask in zip(found[:3], expected[:3], [expected[3]] * 3, strict=True):
        torch.testing.assert_close(a[mask], b[mask], atol=1e-6, rtol=1e-6)

    # share 1: every target is the reward of task 3 or of task 30 for that very transition
    moved = make_sampler(few, HORIZON, Decoding("relabelled", relabel_share=1.0), relabel)
    _, (_, _, rewards, after) = moved.draw(500, torch.Generator().manual_seed(0))
    options = -np.linalg.norm(after.numpy()[:, None] - goals[[3, 30]], axis=-1)
    assert np.isclose(options, rewards.numpy(), atol=1e-6).any(1).all()


def test_episodes_are_paid_by_unseen_tasks(data_root):
    few = trajectories.load(data_root / "datasets", "point_robot", "random").select([3, 30])
    environment = point_robot().make()
    moved = paid_by(EnvironmentRewards(environment, few), few, range(45, 50), numpy_generator(1, "paid_by"))
    assert set(moved.task_ids) == set(range(45, 50)) and (moved.observations == few.observations).all()
    goals = environment.tasks["goal"][moved.task_ids][:, None]
    np.testing.assert_allclose(moved.rewards, -np.linalg.norm(few.observations[:, 1:] - goals, axis=-1), atol=1e-6)


def test_relabelling_uses_recorded_facts_and_names_what_lacks_them():
    """Ant-Dir's rewards need the velocities that the dataset stores beside the transitions."""

    class Environment:
        unwrapped = property(lambda self: self)
        tasks = {"angle": np.array([0.0, 1.0])}  # noqa: RUF012

        @staticmethod
        def compute_rewards(observations, actions, next_observations, tasks, infos=None):
            if infos is None:
                raise ValueError("needs the recorded infos speed")
            return infos["speed"] * np.cos(tasks["angle"])

    observations, actions, rewards, lengths, tasks = numbered(tasks=(0, 0, 1))
    values = {"observations": observations, "actions": actions, "rewards": rewards, "lengths": lengths, "task_ids": tasks}
    values = {name: value.numpy() for name, value in values.items()}
    with_infos = trajectories.Trajectories(**values, infos={"speed": 1.001 * values["rewards"] / np.cos(tasks.numpy())[:, None]})
    relabel = EnvironmentRewards(Environment(), with_infos)
    sampler = make_sampler(with_infos, HORIZON, Decoding("relabelled", relabel_share=1.0), relabel)
    _, (place, _, paid, _) = sampler.draw(50, torch.Generator().manual_seed(0))
    other = 1.001 * (place + 0.25) * torch.where(place < 200, math.cos(1.0), 1 / math.cos(1.0))
    moved = torch.isclose(paid, other, rtol=1e-5)
    assert (moved | (paid == place + 0.25)).all() and moved.any() and not moved.all()  # as recorded where the task is its own
    with pytest.raises(UserError, match=r"speed.*leave --true_rewards out"):
        EnvironmentRewards(Environment(), trajectories.Trajectories(**values))


# -------------------------------------------------------------------------------------------------------------- the run


def test_whole_episodes_of_every_task_are_held_out(data_root):
    dataset = trajectories.load(data_root / "datasets", "point_robot", "random").select(range(0, 45, 3))
    training, held_out = split_episodes(dataset, 0.3, seed=0)
    for part, count in ((training, 7), (held_out, 3)):
        np.testing.assert_array_equal(np.bincount(part.task_ids), [count * (task % 3 == 0) for task in range(43)])
        assert sorted(part.tasks) == list(range(0, 45, 3))
    both = np.concatenate([training.observations, held_out.observations])
    assert len(np.unique(both, axis=0)) == len(both) == len(dataset)
    assert np.array_equal(np.unique(both, axis=0), np.unique(dataset.observations, axis=0))
    assert np.array_equal(split_episodes(dataset, 0.3, seed=0)[1].observations, held_out.observations)
    assert not np.array_equal(split_episodes(dataset, 0.3, seed=1)[1].observations, held_out.observations)


def test_the_best_weights_are_those_of_the_lowest_validation_loss(model_root, tmp_path):
    """A learning rate so high that the loss only grows after the first steps."""
    assert WorldModelOptimisation(reward_weight=2.0, state_weight=3.0).weighted(10, 1) == 23
    flags = ["--env_type", "point_robot", "--data_quality", "random", "--recipe", "debug", "--no-tensorboard"]
    flags += ["--learning_rate", "0.2", "--reward_weight", "2", "--eval_every", "1", "--steps", "12", "--seed", "7"]
    train_context.main([*flags, "--output_dir", str(model_root)])
    directory = model_root / "saves/point_robot/random/context+debug/seed_7"
    points = load_state(directory / "state.pt")["curve"]
    losses = [2 * point["reward_loss"] + point["state_loss"] for point in points]
    best = int(np.argmin(losses))
    assert best < 11, "a case in which the last weights are not the best"
    short = shutil.copytree(model_root / "datasets", tmp_path / "datasets").parent
    train_context.main([*flags, "--output_dir", str(short), "--steps", str(best + 1)])
    found = [load_tensors(root / directory.relative_to(model_root) / f"{name}.safetensors")
             for root, name in ((model_root, "best"), (short, "last"))]  # fmt: skip
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_saved_world_model_is_the_trained_one(model_root):
    model, config = load_world_model(model_root / "saves/point_robot/random/context+debug/seed_0")
    dataset = trajectories.load(model_root / "datasets", "point_robot", "random").select(range(45))
    assert config["context_horizon"] == model.horizon and not any(p.requires_grad for p in model.parameters())
    assert not model.training
    seen = dataset.observations[:, :-1].reshape(-1, 2)
    np.testing.assert_allclose(model.observation_mean, seen.mean(0), atol=0.02)  # nine tenths of the episodes
    np.testing.assert_allclose(model.observation_std, seen.std(0), atol=0.02)
    arrays = [torch.from_numpy(values) for values in (dataset.observations, dataset.actions, dataset.rewards)]
    contexts = episode_contexts(model, *arrays)
    assert F.mse_loss(contexts, contexts.mean((0, 1)).expand_as(contexts)) > 0


def test_a_probe_is_scored_on_other_episodes_and_on_other_tasks(model_root, monkeypatch):
    parts, walked, walk = [], [], probe.random_walk

    def linear_probe(contexts, parameters):
        parts.append(contexts)
        return lambda contexts, parameters: parts.append(contexts) or 0.0

    def random_walk(env, tasks, episodes, seed):
        walked.append(tasks)
        return walk(env, tasks, episodes, seed)

    monkeypatch.setattr(probe, "linear_probe", linear_probe)
    monkeypatch.setattr(probe, "random_walk", random_walk)
    model, _ = load_world_model(model_root / "saves/point_robot/random/context+debug/seed_0")
    held_out = trajectories.load(model_root / "datasets", "point_robot", "random").select([3, 7])
    env = point_robot()
    probe.diagnose(argparse.Namespace(env=env, seed=0), env.make(), model, held_out, [45, 46])
    assert walked == [[3, 7], [45, 46]]
    fitted, scored = ({row.numpy().tobytes() for row in part} for part in parts[:2])
    assert not fitted & scored and len(fitted | scored) == len(held_out)
