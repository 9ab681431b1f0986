"""BOReL: belief model, data transformations, agents, the scripts end to end.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box

from baselines.borel import convert, hindsight_data_collection, online_training
from baselines.borel import train_offline_agent as offline
from baselines.borel import train_single_agent as single
from baselines.borel import train_vae_offline as vae_script
from baselines.borel.agents import DQN, SAC
from baselines.borel.beliefs import belief_rewards, beliefs_of, hyper_states, load_belief_model
from baselines.borel.buffer import RolloutBuffer
from baselines.borel.data import Rollouts, load_rollouts
from baselines.borel.evaluate import BeliefAgent, evaluate, reference_episodes
from baselines.borel.mixing import load_logs, load_replays, mix, relabel_rewards, replay_policies
from baselines.borel.problem import Problem, play, random_actions
from baselines.borel.settings import parse
from baselines.borel.vae import BeliefModel, LossSettings, gaussian_kl, task_spread
from envs.multi_episode import scale_actions, unscale_actions
from src import trajectories
from src.checkpoint import UserError, load_tensors, read_json
from src.config import known_env_types, read_env, read_yaml
from src.results import read_results
from src.seeding import numpy_generator

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_single_agent": single, "hindsight_data_collection": hindsight_data_collection, "convert": convert,
           "train_vae_offline": vae_script, "train_offline_agent": offline, "online_training": online_training}  # fmt: skip
torch.set_num_threads(1)


def problem_of(env_type, episodes):
    path = ROOT / "configs" / f"{env_type}.yaml"
    return Problem(read_env(path, read_yaml(path)), episodes)


def model_config(**changes):
    config = {
        "observation_size": 3, "flagged": 1, "action_size": 2, "discrete": False, "task_embedding_size": 2,
        "aggregator_hidden_size": 6, "action_embedding_size": 3, "state_embedding_size": 4, "reward_embedding_size": 2,
        "layers_before_aggregator": [], "layers_after_aggregator": [], "reward_decoder_layers": [5, 4],
        "rew_pred_type": "deterministic", "num_heads": 0, "reward_decoder_inputs": ["next_obs", "obs", "actions"],
        "decode_reward": True, "decode_state": True, "predict_change": False, "state_decoder_layers": [5],
        "decode_task": False, "task_size": 2, "learn_prior": False, "stochastic": True, "reward_values": [0.0, 1.0],
    }  # fmt: skip
    return {**config, **changes}


def random_batch(rollouts=3, steps=4, seed=0, heads=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "obs": torch.randn(rollouts, steps, 3, generator=generator),
        "next_obs": torch.randn(rollouts, steps, 3, generator=generator),
        "actions": torch.randn(rollouts, steps, 2, generator=generator),
        "rewards": torch.randint(2, (rollouts, steps), generator=generator).float(),
    }
    if heads:
        batch["heads"] = torch.randint(heads, (rollouts, steps), generator=generator)
    return batch


def make_model(seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BeliefModel(model_config(**changes))


# ------------------------------------------------------------------------------------------------------------- the belief


def test_kl_by_hand():
    """N(1, 4) against N(0, 1): (4 + 1 − 1 − ln 4) / 2; and 0 for equal ones."""
    mean, log_var = torch.tensor([[1.0]]), torch.tensor([[math.log(4)]])
    zero = torch.zeros(1, 1)
    assert gaussian_kl(mean, log_var, zero, zero).item() == pytest.approx((4 + 1 - 1 - math.log(4)) / 2)
    assert gaussian_kl(mean, log_var, mean, log_var).item() == 0


def test_kl_chain_and_its_options():
    """KL of each posterior to the one before, of the first to N(0, I); or of all to N(0, I)."""
    model = make_model()
    mean, log_var = torch.randn(2, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    variance = log_var.exp()

    def kl(t, mean_before, variance_before):
        ratio = (variance[:, t] + (mean[:, t] - mean_before) ** 2) / variance_before
        return 0.5 * (ratio - 1 + (variance_before / variance[:, t]).log()).sum(-1)

    zero, one = torch.zeros(5, 2), torch.ones(5, 2)
    chain = [kl(0, zero, one), *(kl(t, mean[:, t - 1], variance[:, t - 1]) for t in (1, 2, 3))]
    torch.testing.assert_close(model.kl(mean, log_var), torch.stack(chain, 1))
    to_prior = [kl(t, zero, one) for t in range(4)]
    torch.testing.assert_close(model.kl(mean, log_var, to_gauss_prior=True), torch.stack(to_prior, 1))


def test_belief_starts_at_the_prior_and_is_causal():
    """q_0 is the heads on the empty memory, whatever follows; one pass equals step by step; the future changes nothing."""
    model, batch = make_model(), random_batch()
    mean, log_var = model.beliefs(batch["actions"], batch["next_obs"], batch["rewards"])
    assert mean.shape == (3, 5, 2)
    prior = model.encoder.heads(model.encoder.empty(3))
    torch.testing.assert_close((mean[:, 0], log_var[:, 0]), prior)
    memory = model.encoder.empty(3)
    for t in range(4):
        step = (batch[key][None, :, t] for key in ("actions", "next_obs"))
        memory = model.encoder.memory(*step, batch["rewards"][None, :, t, None], memory)[0]
        torch.testing.assert_close(model.encoder.heads(memory), (mean[:, t + 1], log_var[:, t + 1]))
    changed = {**batch, "rewards": batch["rewards"].clone()}
    changed["rewards"][:, 2] += 1
    other, _ = model.beliefs(changed["actions"], changed["next_obs"], changed["rewards"])
    torch.testing.assert_close(other[:, :3], mean[:, :3])
    assert not torch.allclose(other[:, 3], mean[:, 3])


def concatenated(decoder, latent, transition):
    """A PairDecoder as the perceptron on the concatenation that it stands for."""
    parts = [(decoder.action if name == "actions" else decoder.state)(transition[name]) for name in decoder.inputs]
    weight = torch.cat([decoder.of_latent.weight, decoder.of_transition.weight], 1)
    return decoder.rest(F.linear(torch.cat([latent, *parts], -1), weight, decoder.of_transition.bias))


@pytest.mark.parametrize("kind", ["deterministic", "bernoulli"])
@pytest.mark.parametrize("only_past", [False, True])
def test_loss_equals_the_sums_written_out(kind, only_past):
    """Every belief decodes every transition: a double loop over t and i gives the same loss, for both kinds of reward."""
    model, batch = make_model(stochastic=False, rew_pred_type=kind), random_batch()
    settings = LossSettings(kl_weight=0.3, rew_loss_coeff=2.0, state_loss_coeff=0.5, decode_only_past=only_past)
    loss, parts = model.loss(batch, settings, torch.Generator())
    mean, log_var = model.beliefs(batch["actions"], batch["next_obs"], batch["rewards"])
    reward = state = 0.0
    for t in range(5):
        for i in range(t if only_past else 4):
            transition = {key: values[:, i] for key, values in batch.items()}
            predicted = concatenated(model.reward_decoder, mean[:, t], transition)[:, 0]
            if kind == "bernoulli":
                reward += F.binary_cross_entropy_with_logits(predicted, batch["rewards"][:, i], reduction="sum") / 3
            else:
                reward += ((predicted - batch["rewards"][:, i]) ** 2).sum() / 3
            errors = concatenated(model.state_decoder, mean[:, t], transition) - batch["next_obs"][:, i, :2]
            state += (errors**2).sum() / 3
    kl = model.kl(mean, log_var).sum(1).mean()
    torch.testing.assert_close(parts["reward_loss"], reward)
    torch.testing.assert_close(parts["state_loss"], state)
    torch.testing.assert_close(loss, 2 * reward + 0.5 * state + 0.3 * kl)


def test_change_of_the_state_is_decoded():
    """--predict-change: the decoder's target is s' − s, and what it predicts is still s'."""
    model, batch = make_model(stochastic=False, predict_change=True), random_batch()
    _, parts = model.loss(batch, LossSettings(kl_weight=0), torch.Generator())
    mean, _ = model.beliefs(batch["actions"], batch["next_obs"], batch["rewards"])
    expected = 0.0
    for t in range(5):
        for i in range(4):
            transition = {key: values[:, i] for key, values in batch.items()}
            predicted = concatenated(model.state_decoder, mean[:, t], transition)
            change = transition["next_obs"] - transition["obs"]
            expected += ((predicted - change[:, :2]) ** 2).sum() / 3
    torch.testing.assert_close(parts["state_loss"], expected)
    following = transition["obs"][:, :2] + predicted
    torch.testing.assert_close(model.predict_states(mean[:, 4], transition), following)


@pytest.mark.parametrize("only_past", [False, True])
def test_multihead_loss_equals_the_sums_written_out(only_past):
    changes = {"num_heads": 7, "rew_pred_type": "bernoulli", "decode_state": False, "stochastic": False}
    model, batch = make_model(**changes), random_batch(heads=7)
    _, parts = model.loss(batch, LossSettings(kl_weight=0, decode_only_past=only_past), torch.Generator())
    mean, _ = model.beliefs(batch["actions"], batch["next_obs"], batch["rewards"])
    logits, expected = model.reward_decoder(mean), 0.0
    for t in range(5):
        for i in range(t if only_past else 4):
            own = logits[:, t].gather(1, batch["heads"][:, [i]])[:, 0]
            expected += F.binary_cross_entropy_with_logits(own, batch["rewards"][:, i], reduction="sum") / 3
    torch.testing.assert_close(parts["reward_loss"], expected)


def test_drawn_elbo_terms_estimate_the_whole_loss():
    """Defect 12: the number of ELBO terms applies to reconstruction, whose drawn terms are unbiased; the KL is always whole."""
    model, batch = make_model(stochastic=False), random_batch()
    _, whole = model.loss(batch, LossSettings(kl_weight=1), torch.Generator())
    settings = LossSettings(kl_weight=1, vae_batch_num_elbo_terms=2, num_decoded_transitions=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = [model.loss(batch, settings, generator)[1] for _ in range(400)]
    assert {parts["kl_loss"].item() for parts in drawn} == {whole.pop("kl_loss").item()}
    for name, value in whole.items():
        values = torch.stack([parts[name] for parts in drawn])
        assert values.std() > 0
        assert values.mean().item() == pytest.approx(value.item(), abs=4 * values.std().item() / 20)


def test_gradients_reach_every_parameter():
    changes = {"decode_task": True, "learn_prior": True, "layers_before_aggregator": [5], "layers_after_aggregator": [5]}
    model, batch = make_model(**changes), {**random_batch(rollouts=16), "tasks": torch.randn(16, 2)}
    loss, _ = model.loss(batch, LossSettings(kl_weight=0.1), torch.Generator().manual_seed(0))
    loss.backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert not silent


def test_steps_without_a_recorded_start_are_not_decoded():
    """Converted data: obs of the first step of later episodes is wrong, so decoders that read it leave that step out."""
    model, batch = make_model(stochastic=False), random_batch()
    masked = {**batch, "decodable": torch.tensor([1.0, 1.0, 0.0, 1.0])}
    changed = {**masked, "obs": batch["obs"].clone()}
    changed["obs"][:, 2] = 100
    losses = [model.loss(b, LossSettings(kl_weight=1), torch.Generator())[0] for b in (masked, changed, batch)]
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


def test_collapse_is_visible():
    """Defect 21: the share of variance between tasks is 1 for separate tasks and small where the task says nothing."""
    tasks = torch.arange(5.0)[:, None, None].expand(5, 8, 2)
    assert task_spread(tasks) == pytest.approx(1)
    assert task_spread(torch.randn(5, 400, 2, generator=torch.Generator().manual_seed(0))) < 0.02
    assert task_spread(torch.zeros(5, 8, 2)) == 0


def test_belief_overfits_two_tasks():
    """Two tasks that differ in what one action pays: after the first reward the decoder knows which it is."""
    model = make_model(rew_pred_type="bernoulli", decode_state=False, reward_decoder_inputs=["next_obs"])
    batch = {key: values.repeat(2, *[1] * (values.ndim - 1)) for key, values in random_batch(rollouts=1).items()}
    batch["rewards"] = torch.tensor([[1.0] * 4, [0.0] * 4])
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(150):
        loss, _ = model.loss(batch, LossSettings(kl_weight=0.01), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    beliefs = beliefs_of(model, *(batch[key].numpy() for key in ("actions", "next_obs", "rewards")))
    predicted = belief_rewards(model, beliefs[:, :-1], batch, 50, generator)
    assert predicted[:, 0].sub(0.5).abs().max() < 0.2  # the prior does not know
    assert (predicted[0, 1:] > 0.9).all() and (predicted[1, 1:] < 0.1).all()


# --------------------------------------------------------------------------------------------------------------- agents


def sac(agents=1, **options):
    settings = {"gamma": 0.9, "tau": 0.1, "critic_lr": 1e-2, "actor_lr": 1e-2, "alpha": 0.1, **options}
    return SAC(agents, 3, 2, [8], torch.Generator().manual_seed(0), **settings)


def transitions(agents=1, size=16, discrete=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, agents, size, 3, generator=generator)
    actions = torch.randint(4, (agents, size), generator=generator)
    if not discrete:
        actions = 2 * torch.rand(agents, size, 2, generator=generator) - 1
    return [obs, actions, torch.randn(agents, size, generator=generator), next_obs, torch.zeros(agents, size)]


def test_dqn_learns_values():
    """Terminal transitions: Q becomes the reward. The target network moves by τ per update."""
    agent = DQN(1, 3, 4, [32], torch.Generator().manual_seed(0), gamma=0.9, tau=0.5, critic_lr=1e-2)
    batch = transitions(size=8, discrete=True)
    batch[4] += 1
    before = [value.clone() for value in agent.target.parameters()]
    agent.update(*batch)
    for old, new, target in zip(before, agent.network.parameters(), agent.target.parameters(), strict=True):
        torch.testing.assert_close(target, 0.5 * old + 0.5 * new)
    for _ in range(400):
        losses = agent.update(*batch)
    assert losses["critic_loss"] < 1e-3
    chosen = agent.network(batch[0]).gather(-1, batch[1][..., None])[..., 0]
    torch.testing.assert_close(chosen, batch[2], atol=0.1, rtol=0)


def test_double_dqn_values_what_the_network_would_do():
    """One hidden unit that is always 1: Q = the last weights plus bias. The network prefers action 1, its target action 0."""
    rewards, gamma = torch.tensor([[2.0]]), 0.5
    for double, expected in ((False, 2 + 0.5 * 7), (True, 2 + 0.5 * 3)):
        agent = DQN(1, 1, 2, [1], torch.Generator().manual_seed(0), gamma, tau=0.1, critic_lr=1e-3, double=double)
        for network, values in ((agent.network, [1.0, 4.0]), (agent.target, [7.0, 3.0])):
            for weight in network.weights:
                weight.data.zero_()
            network.biases[-1].data = torch.tensor([[values]])
        observation, action = torch.ones(1, 1, 1), torch.zeros(1, 1, dtype=torch.long)
        losses = agent.update(observation, action, rewards, observation, torch.zeros(1, 1))
        assert float(losses["critic_loss"]) == pytest.approx((expected - 1) ** 2)


@pytest.mark.parametrize("kind", ["dqn", "sac"])
def test_stacked_agents_do_not_feel_each_other(kind):
    def trained(batch):
        agent = sac(2) if kind == "sac" else DQN(2, 3, 4, [8], torch.Generator().manual_seed(0), 0.9, 0.1, 1e-2)
        for step in range(3):
            agent.update(*batch, torch.Generator().manual_seed(step))
        return agent.policy_network().state_dict()

    batch = transitions(2, discrete=kind == "dqn")
    other = [values.clone() for values in batch]
    other[2][1] += 5  # rewards of the second agent
    first, second = trained(batch), trained(other)
    for name in first:
        torch.testing.assert_close(first[name][0], second[name][0])
    assert any(not torch.equal(first[name][1], second[name][1]) for name in first)


def test_sac_updates_each_part_by_its_own_loss():
    """Defect 9: the policy's loss does not touch the critics, and goes through them as they are after their step."""
    agent, batch = sac(tau=0.0), transitions()
    for _ in range(2):
        losses = agent.update(*batch, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    critics = [parameter.clone() for parameter in agent.network.parameters()]
    agent.critic_parameters, agent.optimizer = [agent.network.biases[-1]], torch.optim.SGD([agent.network.biases[-1]], lr=0.0)
    agent.update(*batch, generator)
    for before, after in zip(critics, agent.network.parameters(), strict=True):
        torch.testing.assert_close(before, after)
    assert set(losses) == {"critic_loss", "mean_q", "policy_loss", "alpha"}


def test_log_density_of_the_policy():
    """The density of sampled actions integrates to one: by importance sampling with the uniform distribution on [−1, 1]²."""
    agent, obs = sac(), torch.zeros(1, 20000, 3)
    actions, log_density = agent.sample(obs, torch.Generator().manual_seed(0))
    assert actions.abs().max() <= 1
    assert (1 / log_density.exp()).mean().item() == pytest.approx(4, rel=0.15)  # the volume of the square


def test_cql_term():
    """Defect 9: log Σ exp Q from density-weighted samples, minus Q of the data; the whole term is weighted."""
    agent, (obs, actions, *_) = sac(), transitions(size=400)
    for parameter in agent.network.parameters():
        torch.nn.init.zeros_(parameter)
    agent.network.biases[-1].data += 3.0  # Q = 3 everywhere: ∫ exp Q = 4·e³ over the square
    values = agent.critics(agent.network, obs, actions)
    term = agent.conservative_term(obs, values, torch.Generator().manual_seed(0))
    assert (term - math.log(2 * SAC.CQL_SAMPLES)).mean().item() == pytest.approx(math.log(4), abs=0.1)
    losses = sac(cql=2.0).update(*transitions(), torch.Generator().manual_seed(0))
    assert "cql_loss" in losses


def test_entropy_is_tuned_towards_its_target():
    """Defect 9: with tuning on α moves: down where the policy is more random than the target −d_a."""
    agent = sac(automatic_alpha=True)
    first = agent.entropy_weight.value().item()
    for step in range(5):
        losses = agent.update(*transitions(), torch.Generator().manual_seed(step))
    assert losses["alpha"].item() < first


def test_rollout_buffer():
    """Rows of states are one longer than those of actions; what follows a state is the next row; old roll-outs go first."""
    buffer = RolloutBuffer(2, capacity=3, steps=4)

    def rollouts(task, numbers):
        base = 1000.0 * task + 10 * torch.tensor(numbers, dtype=torch.float)
        states = base[:, None] + torch.arange(5)
        return {"states": states[None, ..., None], "actions": states[None, :, :4].clone(), "rewards": states[None, :, :4].clone()}

    buffer.add([0], rollouts(0, [1]))
    for numbers in ([1, 2], [3, 4, 5]):
        buffer.add([1], rollouts(1, numbers))
    assert buffer.filled.tolist() == [1, 3]
    assert buffer.ordered(1)["rewards"][:, 0].tolist() == [1030, 1040, 1050]
    obs, actions, rewards, next_obs, terminated = buffer.draw(
        torch.tensor([1, 0, 1]), 200, torch.Generator().manual_seed(0), False
    )
    assert obs.shape == (3, 200, 1)
    torch.testing.assert_close(obs[..., 0], rewards)
    torch.testing.assert_close(obs[..., 0], actions)
    torch.testing.assert_close(next_obs, obs + 1)
    assert torch.equal(terminated == 1, rewards % 10 == 3)
    assert set(rewards[1].tolist()) == {10, 11, 12, 13}
    assert set((rewards[0] // 10).tolist()) == {103, 104, 105}


# ------------------------------------------------------------------------------------------------- transformations of data


def random_rollouts(problem, tasks, count, seed=0):
    rows = np.repeat(tasks, count)
    played = play(problem, rows, random_actions(problem, np.random.default_rng(seed)), (seed, "test"))
    arrays = {key: values.reshape(len(tasks), count, *values.shape[1:]) for key, values in played.items() if key != "success"}
    return Rollouts(np.asarray(tasks), **arrays)


@pytest.mark.parametrize("env_type", ["gridworld", "point_robot_sparse", "cheetah_vel"])
def test_relabelling_with_the_own_task_changes_nothing(env_type):
    problem = problem_of(env_type, 2)
    rollouts = random_rollouts(problem, [3, 5], 2)
    for row, task in enumerate(rollouts.task_ids):
        recomputed = problem.rewards(task, rollouts.obs[row], rollouts.actions[row], rollouts.next_obs[row])
        np.testing.assert_allclose(recomputed, rollouts.rewards[row], atol=2e-3 if env_type == "cheetah_vel" else 0)


def test_reward_relabelling():
    """Defects 10 and 15: the first half of the episodes of each chosen roll-out comes, once, from another task's data as
    they were; its rewards are the receiving task's; the other episodes and roll-outs stay.
    """
    problem = problem_of("gridworld", 4)
    rollouts = random_rollouts(problem, [0, 7, 20], 6)
    mixed = relabel_rewards(rollouts, problem, 0.5, np.random.default_rng(0))
    assert rollouts.fingerprint() == random_rollouts(problem, [0, 7, 20], 6).fingerprint()  # the source is untouched
    for key, values in mixed.arrays().items():
        np.testing.assert_array_equal(values[:, :, 30:], rollouts.arrays()[key][:, :, 30:])
    moved = (mixed.next_obs != rollouts.next_obs).any((2, 3))
    assert moved.sum(1).tolist() == [3, 3, 3]
    for row, task in enumerate(rollouts.task_ids):
        expected = problem.rewards(task, mixed.obs[row], mixed.actions[row], mixed.next_obs[row])
        np.testing.assert_array_equal(mixed.rewards[row], expected)
        for number in np.flatnonzero(moved[row]):
            for episode in (slice(0, 15), slice(15, 30)):
                same = (rollouts.next_obs[:, :, episode] == mixed.next_obs[row, number, episode]).all((2, 3))
                assert same.any(1)[np.arange(3) != row].any() and not same[row].any()


def test_any_number_of_episodes_may_be_relabelled():
    """Each roll-out gets its first u episodes from other tasks, u uniform in 1..4; the rewards are the receiving task's."""
    problem = problem_of("gridworld", 4)
    rollouts = random_rollouts(problem, [0, 7, 20], 40)
    mixed = relabel_rewards(rollouts, problem, 1.0, np.random.default_rng(0), "any")
    moved = (mixed.next_obs != rollouts.next_obs).any(3).reshape(3, 40, 4, 15).any(3)
    many = moved.sum(2)
    assert (moved == (np.arange(4) < many[..., None])).all()  # the first ones
    assert np.bincount(many.ravel(), minlength=5).tolist()[0] == 0 and (np.bincount(many.ravel(), minlength=5)[1:] > 15).all()
    for row, task in enumerate(rollouts.task_ids):
        expected = problem.rewards(task, mixed.obs[row], mixed.actions[row], mixed.next_obs[row])
        np.testing.assert_array_equal(mixed.rewards[row], expected)


def test_fresh_relabelling_differs_by_epoch(grid):
    """Every epoch draws its own mixture; the same epoch draws the same again; the published way knows one draw."""
    _, flags = grid
    args = parse(vae_script.make_parser(), "train_vae_offline", [*flags, "--hindsight-relabelling", "True"])
    logs = load_logs(args)
    once, first, again, second = (mix(args, *logs, "", *epoch).rewards for epoch in ((), (0,), (0,), (1,)))
    assert (first == again).all() and (first != second).any() and (first != once).any()
    plain = parse(vae_script.make_parser(), "train_vae_offline", [*flags, "--hindsight-relabelling", "False"])
    assert mix(plain, *logs, "", 0) is logs[0]


TINY_WIND = """
env_name: TinyWind-v0
entry_point: envs.borel_points:PointRobotWindEnv
max_episode_steps: 25
train_tasks: [0, 3]
test_tasks: [3, 5]
baselines:
  borel:
    train_single_agent: {num_iters: 1, num_init_rollouts_pool: 3, num_rollouts_per_iter: 1, rl_updates_per_iter: 2,
                         batch_size: 8, hidden_layers: [8], log_interval: 1}
    hindsight_data_collection: {num_rollouts: 2}
    train_vae_offline: {num_iters: 1, aggregator_hidden_size: 8, decode_state: true, input_action: true,
                        num_decoded_transitions: 5, vae_batch_num_elbo_terms: 5}
    train_offline_agent: {num_iters: 2, rl_updates_per_iter: 2, batch_size: 8, hidden_layers: [8], log_interval: 1}
"""


@pytest.fixture(scope="module")
def wind(tmp_path_factory):
    """Flags of a tiny wind problem with logs and replays, whose tasks differ in their dynamics."""
    folder = tmp_path_factory.mktemp("wind")
    (folder / "tiny_wind.yaml").write_text(TINY_WIND)
    flags = ["--config", str(folder / "tiny_wind.yaml"), "--output_dir", str(folder), "--tensorboard", "False"]
    single.main([*flags, "--task-id-start", "0", "--task-id-end", "3"])
    hindsight_data_collection.main(flags)
    return folder, flags


def test_dqn_agents_are_replayed(grid, tmp_path):
    """The gridworld's agents too can play in each other's tasks, with the share of random actions that is asked for."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--tensorboard", "False"]
    single.main([*flags, "--task-id-start", "0", "--task-id-end", "21"])
    hindsight_data_collection.main([*flags, "--num-rollouts", "1"])
    document = read_json(tmp_path / "datasets/gridworld/replay+debug/task_020/task.json")
    assert document["policies"] == list(range(21))


def test_policy_replaying(wind):
    """Defect 18: replays obey the wind of the task they are filed under, and come from all of the agents; the first episode
    of every roll-out is one of them.
    """
    folder, flags = wind
    problem = parse(vae_script.make_parser(), "train_vae_offline", flags).problem
    rollouts = load_rollouts(folder / "datasets/tiny_wind/log", problem, range(3), "")
    replays = load_replays(folder / "datasets/tiny_wind/replay", problem, range(3), "")
    assert replays[1]["policies"].tolist() == [0, 0, 1, 1, 2, 2]
    mixed = replay_policies(rollouts, problem, replays, 2, np.random.default_rng(0))
    longer = replay_policies(rollouts, problem, replays, 2, np.random.default_rng(0), "any")
    second = (longer.next_obs[:, :, 25:] != rollouts.next_obs[:, :, 25:]).any((2, 3))
    assert second.any() and not second.all()
    for row in range(3):
        displacement = mixed.next_obs[row, ..., :2] - mixed.obs[row, ..., :2] - 0.1 * mixed.actions[row]
        np.testing.assert_allclose(displacement, np.broadcast_to(problem.tasks["wind"][row], displacement.shape), atol=1e-5)
    for key, values in mixed.arrays().items():
        np.testing.assert_array_equal(values[:, :, 25:], rollouts.arrays()[key][:, :, 25:])
    assert not np.array_equal(mixed.obs[:, :, 1:25], rollouts.obs[:, :, 1:25])


def test_state_decoder_is_loaded(wind):
    """Defect 12: a belief model read back from disk has its state decoder, and the method's name tells what is missing."""
    folder, flags = wind
    vae_script.main([*flags, "--policy-replaying", "True"])
    vae_script.main(flags)
    problem = parse(vae_script.make_parser(), "train_vae_offline", flags).problem
    saved = folder / "saves/tiny_wind/log/borel/vae"
    model = load_belief_model(saved / "replay__seed_0", problem, "")
    weights = load_tensors(saved / "replay__seed_0" / "model.safetensors")
    assert torch.equal(model.state_dict()["state_decoder.of_latent.weight"], weights["state_decoder.of_latent.weight"])
    for name, method in (("replay__seed_0", "borel"), ("plain__seed_0", "borel-no_replaying")):
        offline.main([*flags, "--vae-model-name", name, "--transform-data-bamdp", "True"])
        assert (folder / f"results/tiny_wind/log/{method}/bamdp-strict/seed_0.json").exists()


def test_replaying_reaches_the_policy(wind, capsys):
    """The policy's data hold the other agents' first episodes, under the wind of the task; a plain belief model refuses."""
    _, flags = wind
    for extra in (["--policy-replaying", "True"], []):
        vae_script.main([*flags, "--seed", "3", *extra])
    common = [*flags, "--seed", "3", "--transform-data-bamdp", "True"]
    args = parse(offline.make_parser(), "train_offline_agent", [*common, "--vae-model-name", "replay__seed_3"])
    name, path = offline.find_model(args)
    model = load_belief_model(path, args.problem, "")
    plain = offline.load_hyper_states(args, model, name)
    args.policy_replaying = True
    mixed = offline.load_hyper_states(args, model, name)
    assert (plain["states"][:, :, :25, :2] != mixed["states"][:, :, :25, :2]).any()
    assert torch.equal(plain["actions"][:, :, 25:], mixed["actions"][:, :, 25:])
    steps = mixed["states"][:, :, 1:25, :2] - mixed["states"][:, :, :24, :2] - 0.1 * mixed["actions"][:, :, :24]
    wind = torch.from_numpy(args.problem.tasks["wind"][:3]).float()[:, None, None].expand_as(steps)
    torch.testing.assert_close(steps, wind, atol=1e-4, rtol=0)
    with pytest.raises(SystemExit):
        offline.main([*common, "--vae-model-name", "plain__seed_3", "--policy-replaying", "True"])
    assert "--policy-replaying False" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        offline.main([*common, "--vae-model-name", "replay__seed_3", "--hindsight-relabelling", "True"])
    assert "use --policy-replaying True" in capsys.readouterr().err


def test_rewards_expected_under_the_oracle_belief():
    """Gridworld: 21 goals are possible at first; the start is none of them; a goal that was entered is certain."""
    next_obs = np.array([[[0, 0, 0], [2, 0, 0], [3, 0, 0], [2, 0, 0], [2, 1, 0]]], dtype=np.float32)
    rewards = np.array([[-0.1, -0.1, 1, -0.1, -0.1]], dtype=np.float32)
    expected = online_training.oracle_rewards(next_obs, rewards)[0]
    np.testing.assert_allclose(expected, [-0.1, (1 - 0.1 * 20) / 21, (1 - 0.1 * 19) / 20, -0.1, -0.1], rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- the scripts, by shell


def shell(*words, check=True, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Flags of a gridworld run whose three stages went through the shell, hyphens as published."""
    folder = tmp_path_factory.mktemp("grid")
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(folder), "--tensorboard", "False"]
    shell("baselines.borel.train_single_agent", *flags, "--task-id-start", "0", "--task-id-end", "21")
    done = shell("baselines.borel.train_vae_offline", *flags, "--hindsight-relabelling", "True")
    follow = done.stdout.split("next: python -m ")[1].split()  # the printed command is the next stage
    assert follow[0] == "baselines.borel.train_offline_agent"
    shell(*follow, "--tensorboard", "False")
    return folder, flags


def test_pipeline_by_shell(grid):
    folder, _ = grid
    (result,) = read_results(folder / "results")
    assert (result["method"], result["quality"], result["regime"]) == ("borel+debug", "log", "bamdp")
    assert np.shape(result["returns"]) == np.shape(result["success"]) == (21, 4)
    levels = {"trivial", "oracle", "thompson", "walk_and_redraw", "bayes_optimal", "single_task_agents"}
    assert set(result["reference"]) >= levels
    assert sum(np.mean(result["reference_episodes"]["bayes_optimal"], axis=0)) == pytest.approx(37.214, abs=1e-3)
    assert len(result["belief"]["spread"]) == 61 and result["curve"]["gradient_steps"] == [6, 12]
    paths = result["trajectories"]["0"]
    assert np.shape(paths) == (4, 16, 2) and paths[0][0] == [0, 0]  # defect 17: evaluations start at the origin
    done = shell("src.report", "--results", str(folder / "results"), "--output", str(folder / "report"))
    assert "bayes_optimal" in done.stdout
    assert len(list((folder / "report").glob("*.png"))) >= 4


def test_log_of_a_task(grid):
    folder, _ = grid
    document = read_json(folder / "datasets/gridworld/log+debug/task_007/task.json")
    assert document["parameters"] == {"goal": [1, 2]} and document["num_rollouts"] == 7
    tensors = load_tensors(folder / "datasets/gridworld/log+debug/task_007/rollouts.safetensors")
    assert tensors["obs"].shape == (7, 60, 3) and tensors["actions"].shape == (7, 60)
    assert not tensors["terminated"].any()
    assert torch.equal(tensors["truncated"][0].nonzero()[:, 0], torch.tensor([14, 29, 44, 59]))
    assert torch.equal(tensors["next_obs"][0, :, 2].nonzero()[:, 0], torch.tensor([14, 29, 44, 59]))
    inside = torch.arange(59)[torch.arange(59) % 15 != 14]
    assert torch.equal(tensors["obs"][:, inside + 1], tensors["next_obs"][:, inside])


def finished_data(folder, method="borel+debug"):
    """(policy, relabelled data) of a finished run, as bytes."""
    policy = folder / "saves/gridworld/log/borel/offline" / method / "seed_0/policy.safetensors"
    cache = sorted((folder / "datasets/gridworld/log+debug/data_bamdp").rglob("*.safetensors"))
    return policy.read_bytes(), [path.read_bytes() for path in cache]


def test_relabelled_data_are_read_back(grid, capsys):
    """Defect 11: False after True, and True a second time, give the same data and the same policy."""
    folder, flags = grid
    first = finished_data(folder)
    for transform in ("False", "1", "yes"):
        offline.main([*flags, "--no-resume", "--transform-data-bamdp", transform])
        assert finished_data(folder) == first
    with pytest.raises(SystemExit):
        offline.main([*flags, "--no-resume", "--hindsight-relabelling", "True"])
    assert "run once with --transform-data-bamdp True" in capsys.readouterr().err
    assert finished_data(folder) == first  # a command that is refused leaves everything as it was


def test_settings_of_the_stages_do_not_mix(grid):
    """Defect 11: each stage keeps its own seed and settings; the belief model's do not override the policy's."""
    folder, flags = grid
    offline.main([*flags, "--seed", "5", "--transform-data-bamdp", "True", "--vae-model-name", "relabel+debug__seed_0"])
    result = read_json(folder / "results/gridworld/log/borel+debug/bamdp-strict/seed_5.json")
    assert result["seed"] == 5 and result["config"]["seed"] == 5 and result["env_type"] == "gridworld"
    assert read_json(folder / "saves/gridworld/log/borel/vae/relabel+debug__seed_0/config.json")["seed"] == 0
    (folder / "results/gridworld/log/borel+debug/bamdp-strict/seed_5.json").unlink()


def test_rewards_are_relabelled_before_the_encoder_reads_them(grid):
    """Defect 16: the stored beliefs are those of the stored rewards, and terminals in the goal follow the new task."""
    folder, flags = grid
    extra = ["--hindsight-relabelling", "True", "--terminate-in-goal", "True", "--relabelled-data-dir", "mixed"]
    args = parse(offline.make_parser(), "train_offline_agent", [*flags, *extra, "--transform-data-bamdp", "True"])
    name, path = offline.find_model(args)
    model = load_belief_model(path, args.problem, "")
    data = offline.load_hyper_states(args, model, name)
    plain = load_rollouts(folder / "datasets/gridworld/log+debug", args.problem, range(21), "")
    assert (data["rewards"].numpy() != plain.rewards).any()
    assert torch.equal(data["terminated"], data["rewards"] == 1)
    states = data["states"]
    mixed = relabel_rewards(plain, args.problem, 1.0, numpy_generator(0, "relabelling for the policy"))
    task = 4
    arrays = {key: values[task] for key, values in mixed.arrays().items()}
    np.testing.assert_array_equal(arrays["rewards"], data["rewards"][task])
    torch.testing.assert_close(hyper_states(model, args.problem, **arrays), states[task])


def test_relabelling_is_on_or_off_in_both_stages(grid, tmp_path):
    """The command that a plain belief model prints leaves the policy's data plain; relabelled ones are refused."""
    folder, flags = grid
    plain = [word if word != str(folder) else str(tmp_path) for word in flags]
    shutil.copytree(folder / "datasets", tmp_path / "datasets")
    done = shell("baselines.borel.train_vae_offline", *plain, "--hindsight-relabelling", "False")
    follow = done.stdout.split("next: python -m ")[1].split()
    assert " ".join(follow).count("--hindsight-relabelling False") == 1
    with pytest.raises(SystemExit):
        offline.main([*plain, "--transform-data-bamdp", "True", "--hindsight-relabelling", "True"])
    shell(*follow, "--tensorboard", "False")
    (result,) = read_results(tmp_path / "results")
    assert result["method"] == "borel-no_relabelling+debug" and result["config"]["hindsight_relabelling"] is False


def test_hyper_states(grid):
    """Prior first; the flag cleared in the last row; beliefs equal those of an agent that acts step by step."""
    _, flags = grid
    args = parse(offline.make_parser(), "train_offline_agent", flags)
    model = load_belief_model(offline.find_model(args)[1], args.problem, "")
    agent = DQN(1, 13, 5, [8], torch.Generator().manual_seed(0), 0.9, 0.1, 1e-3)
    actor = BeliefAgent(model, agent)
    played = play(args.problem, np.array([2, 9]), actor, (0, "test"))
    arrays = {key: played[key] for key in ("obs", "actions", "rewards", "next_obs")}
    states = hyper_states(model, args.problem, **arrays)
    assert states.shape == (2, 61, 13) and (states[:, :, 2] == 0).all()
    torch.testing.assert_close(states[:, :, 3:], torch.stack(actor.beliefs, 1))
    torch.testing.assert_close(states[:, 0, 3:], torch.cat(model.encoder.heads(model.encoder.empty(2)), -1))
    first, second = (evaluate(args.problem, model, agent, np.arange(21), 1, seed=3, pictures=True) for _ in range(2))
    assert first == second and len(first["returns"]) == 21
    expected = belief_rewards(model, states[:, :-1, 3:], offline.model_inputs(args.problem, model, arrays), 3, torch.Generator())
    assert expected.shape == (2, 60) and (expected >= -0.1 - 1e-6).all() and (expected <= 1).all()


def test_killed_runs_resume_to_the_same_weights(grid, tmp_path):
    """SIGKILL after the first checkpoint, then the same command: the belief model's weights are those of a whole run."""
    folder, flags = grid
    flags = [*flags, "--num-iters", "60", "--save-interval", "2"]
    flags += ["--hindsight-relabelling", "True", "--fresh-relabelling", "True"]
    whole = ["--vae-model-name", "whole"]
    vae_script.main([*flags, *whole])
    command = [sys.executable, "-m", "baselines.borel.train_vae_offline", *flags, "--vae-model-name", "killed"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    models = folder / "saves/gridworld/log/borel/vae"
    deadline = time.monotonic() + 60
    while not (models / "killed/state.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (models / "killed/finished.json").exists()
    vae_script.main([*flags, "--vae-model-name", "killed"])
    assert (models / "killed/model.safetensors").read_bytes() == (models / "whole/model.safetensors").read_bytes()
    for name in ("killed", "whole"):  # other tests rely on there being one model
        for path in (models / name).iterdir():
            path.unlink()
        (models / name).rmdir()


class Stop(Exception):
    pass


def interrupted(monkeypatch, script, argv, after):
    """Run `script` and let it die right after its `after`-th checkpoint."""
    saved = []

    def save_state(path, state):
        real(path, state)
        saved.append(path)
        if len(saved) == after:
            raise Stop

    real = script.save_state
    with monkeypatch.context() as patch:
        patch.setattr(script, "save_state", save_state)
        with pytest.raises(Stop):
            script.main(argv)


def test_every_training_script_resumes(grid, tmp_path, monkeypatch):
    """Dying after a checkpoint changes nothing of what single-task, offline and online training produce."""
    folder, flags = grid
    tiny = ["--env-type", "gridworld", "--recipe", "debug", "--tensorboard", "False"]
    found = {}
    for name in ("whole", "killed"):
        own = [*tiny, "--output_dir", str(tmp_path / name)]
        sizes = ["--policy-buffer-size", "240", "--vae-buffer-size", "240"]
        refreshing = [*sizes, "--refresh-interval", "2", "--decay-lr", "True"]
        runs = {single: [*own, "--seed", "24"], online_training: [*own, *refreshing]}
        for script, argv in runs.items():
            if name == "killed":
                interrupted(monkeypatch, script, argv, 1)
            script.main(argv)
        log = load_tensors(tmp_path / name / "datasets/gridworld/log+debug/task_003/rollouts.safetensors")  # 24 modulo 21
        online = tmp_path / name / "saves/gridworld/log/borel/online/borel-online+debug/seed_0/policy.safetensors"
        found[name] = {key: values.tolist() for key, values in log.items()}, online.read_bytes()
    assert found["whole"] == found["killed"]
    before = finished_data(folder)[0]
    interrupted(monkeypatch, offline, [*flags, "--no-resume"], 2)
    offline.main(flags)
    assert finished_data(folder)[0] == before
    decaying = [*flags, "--decay-lr", "True", "--method", "decaying"]
    offline.main(decaying)
    whole = finished_data(folder, "decaying+debug")[0]
    interrupted(monkeypatch, offline, [*decaying, "--no-resume"], 2)
    offline.main(decaying)
    assert finished_data(folder, "decaying+debug")[0] == whole != before
    shutil.rmtree(folder / "results/gridworld/log/decaying+debug")  # other tests rely on there being one result


def test_best_policy_is_kept(grid, monkeypatch):
    """--keep-best ends with the policy of the best evaluation on the training tasks, which are the test tasks here."""
    folder, flags = grid
    keeping = [*flags, "--keep-best", "True", "--num-iters", "7", "--critic-lr", "0.3", "--method", "best"]
    keeping += ["--log-interval", "1", "--save-interval", "1"]
    offline.main(keeping)
    policy = finished_data(folder, "best+debug")[0]
    result = read_json(folder / "results/gridworld/log/best+debug/bamdp-strict/seed_0.json")
    curve = result["curve"]["train_return"]
    assert max(curve) > curve[-1] and np.mean(result["returns"]) == pytest.approx(max(curve), abs=1e-4)
    interrupted(monkeypatch, offline, [*keeping, "--no-resume"], 5)
    offline.main(keeping)
    assert finished_data(folder, "best+debug")[0] == policy
    shutil.rmtree(folder / "results/gridworld/log/best+debug")


def test_online_training_with_sac_and_tensorboard(tmp_path):
    """Defect 14: what the updates return is what is logged; evaluations are on tasks that are not trained on."""
    flags = ["--env-type", "point_robot_dense", "--recipe", "debug", "--output_dir", str(tmp_path), "--decode-state", "True"]
    flags += ["--action-embedding-size", "4", "--num-train-tasks", "6", "--num-eval-tasks", "2", "--switch-to-belief-reward", "1"]
    online_training.main([*flags, "--automatic-entropy-tuning", "True", "--num-belief-samples", "2", "--eval-rollouts", "1"])
    run = tmp_path / "saves/point_robot_dense/log/borel/online/borel-online+debug/seed_0"
    split = read_json(run / "split.json")
    assert len(split["train"]) == 6 and len(split["eval"]) == 2 and not set(split["train"]) & set(split["eval"])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/alpha_loss", "belief/state_loss", "test_return/sum", "train_return/sum"} <= records[-1].keys()
    assert list((run / "tensorboard").iterdir())
    (result,) = read_results(tmp_path / "results")
    assert result["task_ids"] == split["eval"] and result["quality"] == "online"


def test_online_training_refreshes_its_hyper_states(tmp_path):
    """With --refresh-interval what is stored is what the present encoder says; all tasks may serve for both."""
    flags = ["--env-type", "gridworld", "--recipe", "debug", "--output_dir", str(tmp_path), "--num-train-tasks", "21"]
    sizes = ["--policy-buffer-size", "180", "--vae-buffer-size", "180", "--num-tasks-sample", "21"]
    args = parse(online_training.make_parser(), "online_training", [*flags, "--num-eval-tasks", "21", *sizes])
    tasks = online_training.split_tasks(args)
    assert tasks["train"].tolist() == tasks["eval"].tolist() == list(range(21))
    run = online_training.Online(args, tasks, tmp_path)
    for iteration in range(3):
        run.iterate(iteration)
    assert (run.vae_buffer.counts > run.vae_buffer.capacity).all()  # the oldest are overwritten
    stale = run.policy_buffer.arrays["states"].clone()
    run.refresh()
    fresh = run.policy_buffer.arrays["states"]
    assert not torch.allclose(fresh, stale) and torch.equal(fresh[..., :3], stale[..., :3])
    raw = {key: values[4].numpy() for key, values in run.vae_buffer.arrays.items()}
    raw = {key: raw[key][: run.vae_buffer.filled[4]] for key in ("obs", "actions", "rewards", "next_obs")}
    torch.testing.assert_close(fresh[4, : len(raw["obs"])], hyper_states(run.model, run.problem, **raw))
    args.refresh_interval = 1
    run.iterate(3)
    stored = run.policy_buffer.arrays["states"].clone()
    run.refresh()
    assert torch.equal(run.policy_buffer.arrays["states"], stored)


# ------------------------------------------------------------------------------------------------------------- converter


def write_original(folder, problem, task, rollouts=3, name=None, **changes):
    """A folder as the original writes it: flat arrays, roll-outs in sequence, one-hot actions, stale starts."""
    played = play(problem, np.full(rollouts, task), random_actions(problem, np.random.default_rng(task)), (task, "original"))
    obs = played["obs"].copy()
    obs[:, 15::15] = played["next_obs"][:, 14:-1:15]
    goal = problem.tasks["goal"][task]
    path = folder / (name or f"seed_{task + 40}_goal_{goal[0]:.3f}_{goal[1]:.3f}")
    path.mkdir(parents=True)
    arrays = {"obs": obs, "next_obs": played["next_obs"], "actions": np.eye(5)[played["actions"]], "rewards": played["rewards"]}
    for key, values in {**arrays, **changes}.items():
        values = values if values.ndim == 1 or key in changes else values.reshape(rollouts * problem.steps, -1)
        np.save(path / f"{key}.npy", values)
    return played


def test_converter(tmp_path):
    problem = problem_of("gridworld", 4)
    played = write_original(tmp_path / "original", problem, 3)
    write_original(tmp_path / "original", problem, 12)
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path), "--source", str(tmp_path / "original")]
    convert.main(flags)
    rollouts = load_rollouts(tmp_path / "datasets/gridworld/log", problem, [3, 12], "")
    assert not rollouts.starts_recorded
    for key in ("actions", "rewards", "next_obs"):
        np.testing.assert_array_equal(rollouts.arrays()[key][0], played[key])
    assert read_json(tmp_path / "datasets/gridworld/log/task_003/task.json")["seed"] == 43


def test_datasets_become_logs(tmp_path, capsys):
    """K successive episodes of a dataset are one roll-out, flags and starts included, as if BOReL had collected them itself."""
    problem, single_episodes = problem_of("cheetah_vel", 2), problem_of("cheetah_vel", 1)
    tasks = np.repeat([3, 7], 5)
    played = play(single_episodes, tasks, random_actions(problem, np.random.default_rng(0)), (0, "dataset"))
    observations = np.concatenate([played["obs"], played["next_obs"][:, -1:]], 1)
    lengths, known = np.full(10, 200), trajectories.task_parameters(problem.environment, [3, 7])
    episodes = trajectories.Trajectories(observations, played["actions"], played["rewards"], lengths, tasks, known)
    trajectories.save(episodes, tmp_path / "datasets", problem.env, "replay", {})
    flags = ["--env-type", "cheetah_vel", "--output_dir", str(tmp_path)]
    agent = tmp_path / "datasets/cheetah_vel/log/task_003/agent.safetensors"
    agent.parent.mkdir(parents=True)
    agent.write_bytes(b"of a log that is replaced")
    convert.main([*flags, "--dataset", "replay"])
    assert not agent.exists()
    stamp = offline.task_stamp(tmp_path / "datasets/cheetah_vel/log", 3, "")
    assert stamp[-1] == trajectories.load(tmp_path / "datasets", "cheetah_vel", "replay").metadata["sha256"]
    rollouts = load_rollouts(tmp_path / "datasets/cheetah_vel/log", problem, [3, 7], "")
    assert rollouts.obs.shape == (2, 2, 400, 21) and rollouts.starts_recorded
    flagged = rollouts.next_obs[..., -1] == 1
    assert flagged.sum() == 8 and flagged[..., [199, 399]].all() and not rollouts.obs[..., -1].any()
    np.testing.assert_array_equal(rollouts.obs[1, 1, 200:, :-1], observations[8, :200])  # task 7's fourth episode
    np.testing.assert_array_equal(rollouts.next_obs[1, 1, 200:, :-1], observations[8, 1:])
    np.testing.assert_allclose(rollouts.actions[1, 1, 200:], played["actions"][8], atol=1e-6)
    own = problem.rewards(7, *(rollouts.arrays()[key][1] for key in ("obs", "actions", "next_obs")))
    np.testing.assert_allclose(own, rollouts.rewards[1], atol=1e-3)
    assert read_json(tmp_path / "datasets/cheetah_vel/log/task_007/task.json")["source"] == "replay dataset"
    assert_refused(capsys, convert, [*flags, "--dataset", "medium"], f"--data_type medium --output_dir {tmp_path}")
    assert_refused(capsys, convert, [*flags, "--dataset", "replay", "--max-rollouts-per-task", "6"], "fewer than 6 episodes")
    assert_refused(capsys, convert, [*flags, "--dataset", "replay", "--source", "here"], "not allowed with argument")


def test_dataset_of_a_sibling(tmp_path, capsys):
    """The dense ant's episodes become logs of the sparse one, whose rewards are computed anew."""
    problem, dense = problem_of("ant_semicircle_sparse", 2), problem_of("ant_semicircle", 1)
    tasks = np.repeat([2, 5], 2)
    played = play(dense, tasks, random_actions(dense, np.random.default_rng(0)), (0, "dataset"))
    observations = np.concatenate([played["obs"], played["next_obs"][:, -1:]], 1)
    observations[0, 90, :2] = problem.tasks["goal"][2]  # a visit to the goal
    known = trajectories.task_parameters(dense.environment, [2, 5])
    episodes = trajectories.Trajectories(
        observations, played["actions"], played["rewards"], np.full(4, 200), tasks, known
    )  # fmt: skip
    trajectories.save(episodes, tmp_path / "datasets", dense.env, "replay", {})
    flags = ["--output_dir", str(tmp_path), "--dataset-of", "ant_semicircle"]
    convert.main(["--env-type", "ant_semicircle_sparse", "--dataset", "replay", *flags])
    rollouts = load_rollouts(tmp_path / "datasets/ant_semicircle_sparse/log", problem, [2, 5], "")
    assert rollouts.rewards.shape == (2, 1, 400) and played["rewards"].max() < -0.1
    cost = 0.1 * (rollouts.actions.astype(float) ** 2).sum(-1)
    np.testing.assert_allclose(rollouts.rewards[0, 0, 89], 1 - cost[0, 0, 89], atol=1e-6)
    assert rollouts.rewards[1].max() <= 0
    document = read_json(tmp_path / "datasets/ant_semicircle_sparse/log/task_005/task.json")
    assert document["source"] == "replay dataset of ant_semicircle"
    for env_type, extra, message in (
        ("cheetah_vel", ["--dataset", "replay"], "has other observations, actions or tasks than cheetah_vel"),
        ("ant_semicircle_sparse", ["--source", "here"], "says nothing without --dataset"),
        ("ant_semicircle_sparse", ["--dataset", "medium"], "get_datasets.py --env_type ant_semicircle --data_type medium"),
    ):
        assert_refused(capsys, convert, ["--env-type", env_type, *extra, *flags], message)


def test_unscaled_actions_are_those_of_the_policy():
    space = Box(np.float32([-2, 0]), np.float32([2, 0.5]))
    actions = np.random.default_rng(0).uniform(-1, 1, (9, 2)).astype(np.float32)
    np.testing.assert_allclose(unscale_actions(scale_actions(actions, space), space), actions, atol=1e-6)


def test_converter_refuses_what_it_cannot_trust(tmp_path, capsys):
    problem = problem_of("gridworld", 4)
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path)]
    cases = {
        "not a plain numpy array": {"rewards": np.array([{"code": 1}], dtype=object)},
        "whole number of roll-outs": {"rewards": np.zeros((17, 1))},
        "finite": {"next_obs": np.full((180, 3), np.nan)},
        "numbers per step": {"obs": np.zeros((180, 5))},
    }
    for number, (message, changes) in enumerate(cases.items()):
        source = tmp_path / f"case_{number}"
        write_original(source, problem, 3, **changes)
        assert_refused(capsys, convert, [*flags, "--source", str(source)], message)
    write_original(tmp_path / "elsewhere", problem, 3, name="seed_1_goal_0.500_0.500")
    assert_refused(capsys, convert, [*flags, "--source", str(tmp_path / "elsewhere")], "0 tasks of")
    assert_refused(capsys, convert, [*flags, "--source", str(tmp_path / "nowhere")], "no folder called")
    assert not (tmp_path / "datasets").exists()


# ------------------------------------------------------------------------------------------------------------- bad input


def assert_refused(capsys, script, argv, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and lines[-1].startswith("error: ") and message in lines[-1], lines


def test_mistakes_are_named_in_one_line(tmp_path, capsys, grid):
    flags = ["--env-type", "gridworld", "--output_dir", str(tmp_path)]
    for script, extra, message in [
        (vae_script, [], "train_single_agent --env_type gridworld --task-id-start 0 --task-id-end 21"),
        (offline, [], "holds 0 belief models: make one"),
        (offline, ["--vae-model-name", "absent"], "no finished belief model"),
        (hindsight_data_collection, [], "no agent of task 0"),
        (single, ["--policy", "sac"], "does not fit the discrete actions"),
        (single, ["--task-id-start", "5", "--task-id-end", "99"], "must satisfy"),
        (vae_script, ["--hindsight-relabelling", "maybe"], "is not True or False"),
        (vae_script, ["--decode-state", "True"], "use --policy-replaying True"),
        (vae_script, ["--hindsigth-relabelling", "True"], "did you mean --hindsight-relabelling"),
        (offline, ["--use-cql", "True"], "needs --policy sac"),
        (online_training, ["--num-train-tasks", "20", "--num-eval-tasks", "9"], "not exceed 21 tasks"),
        (online_training, ["--env-type", "point_robot_dense", "--oracle-belief-reward", "True"], "exact belief"),
        (online_training, ["--refresh-interval", "5", "--vae-buffer-size", "60"], "buffer-size equal"),
        (single, ["--dense-train-sparse-test", "True"], "gridworld has no dense reward"),
        (online_training, ["--num-train-tasks", "21"], "must be given"),
    ]:
        assert_refused(capsys, script, [*flags, *extra], message)
    assert not any((tmp_path / name).exists() for name in ("datasets", "results", "saves"))
    _, flags = grid
    extra = ["--vae-model-name", "other", "--predict-change", "True"]
    assert_refused(capsys, vae_script, [*flags, *extra], "says nothing without --decode-state")
    extra = ["--vae-model-name", "other", "--max-rollouts-per-task", "3"]
    assert_refused(capsys, vae_script, [*flags, *extra], "change --max-rollouts-per-task")
    extra = ["--vae-model-name", "other", "--state-embedding-size", "0", "--multihead-for-reward", "False"]
    assert_refused(capsys, vae_script, [*flags, *extra], "--state-embedding-size above 0")


def test_collapse_is_reported(grid, capsys, monkeypatch):
    """Defect 21: a belief that hardly depends on the task is not passed over in silence."""
    _, flags = grid
    monkeypatch.setattr(vae_script, "COLLAPSED", 1.1)
    vae_script.main([*flags, "--hindsight-relabelling", "True"])
    assert "warning: the belief hardly depends on the task" in capsys.readouterr().out


@pytest.mark.parametrize("env_type", known_env_types())
def test_settings_files_fit_the_scripts(env_type):
    """Every YAML with BOReL sections is accepted by every script it names, in every recipe."""
    document = read_yaml(ROOT / "configs" / f"{env_type}.yaml")
    sections = (document.get("baselines") or {}).get("borel") or {}
    for recipe in ("paper", *[name for name, entry in (document.get("recipes") or {}).items() if "baselines" in entry]):
        for name in sections:
            extra = ["--source", "x"] if name == "convert" else []
            args = parse(SCRIPTS[name].make_parser(), name, ["--env-type", env_type, "--recipe", recipe, *extra])
            assert args.env_type == env_type


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_published_flags(name, capsys):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[name].main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--max-rollouts-per-task" in text


def test_unknown_baselines_in_a_settings_file(tmp_path, capsys):
    for section, message in (
        ("baselines: {boral: {}}", "did you mean borel"),
        ("baselines: {borel: {train_vae: {}}}", "unknown"),
    ):
        (tmp_path / "own.yaml").write_text(TINY_WIND.split("baselines:")[0] + section + "\n")
        assert_refused(capsys, vae_script, ["--config", str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path)], message)


def test_loss_settings_name_flags():
    """Every field of LossSettings is a flag of both scripts that train a belief."""
    for script in (vae_script, online_training):
        flags = {action.dest for action in script.make_parser()._actions}
        assert {field.name for field in dataclasses.fields(LossSettings)} <= flags


def test_families_of_meta_dt_have_its_reference_levels():
    """The stored levels of one episode stand for each of the K; the sparse robots' are played with memory instead."""
    levels = reference_episodes(problem_of("cheetah_vel", 2), [45, 49])
    known = read_json(ROOT / "configs/references/cheetah_vel.json")["per_task"]
    for level in ("task_blind", "oracle"):
        assert levels[level] == [[known[level][task]] * 2 for task in (45, 49)]
    assert np.shape(levels["trivial"]) == (2, 2) and np.mean(levels["trivial"]) < np.mean(levels["oracle"])


def test_problem_needs_rewards_for_relabelling(wind):
    _, flags = wind
    problem = parse(vae_script.make_parser(), "train_vae_offline", flags).problem
    problem.environment = object()
    with pytest.raises(UserError, match="no compute_rewards"):
        problem.rewards(0, np.zeros(3), np.zeros(2), np.zeros(3))
