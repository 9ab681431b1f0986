"""BOReL: DQN, SAC and the buffer they learn from.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import math

import pytest
import torch

from baselines.borel.agents import DQN, SAC
from baselines.borel.buffer import RolloutBuffer

torch.set_num_threads(1)


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


def test_sac_finds_the_action_that_the_critics_value_most():
    """Critics that stay −|a − a*|₁, whatever the state: the policy's mean goes to a*, and its entropy is what α pays for."""
    wanted, deviations = torch.tensor([0.5, -0.25]), []
    for alpha in (0.01, 0.3):
        agent = sac(tau=0.0, alpha=alpha, actor_lr=0.03)
        for parameter in agent.network.parameters():
            torch.nn.init.zeros_(parameter)
        hidden, last = agent.network.weights  # (2, 5, 8), (2, 8, 1): of both critics; rows 3 and 4 of the inputs are the action
        for place in (0, 1):
            for unit, sign in ((2 * place, 1.0), (2 * place + 1, -1.0)):
                hidden.data[:, 3 + place, unit] = sign
                agent.network.biases[0].data[:, 0, unit] = -sign * wanted[place]
                last.data[:, unit] = -1.0
        agent.optimizer = torch.optim.SGD(agent.critic_parameters, lr=0.0)
        batch, generator = transitions(size=64), torch.Generator().manual_seed(0)
        assert agent.critics(agent.network, batch[0], wanted.expand(1, 64, 2)).abs().max() < 1e-6
        for _ in range(200):
            agent.update(*batch, generator)
        found = agent.act(batch[0])
        deviations.append((agent.sample(batch[0], generator)[0] - found).std().item())
        assert alpha > 0.1 or (found - wanted).abs().max() < 0.1
    assert deviations[1] > 2 * deviations[0]


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
        steps = states[None, :, :4]
        return {
            "states": states[None, ..., None],
            "actions": steps.clone(),
            "rewards": steps.clone(),
            "terminated": steps % 10 == 3,
        }

    buffer.add([0], rollouts(0, [1]))
    for numbers in ([1, 2], [3, 4, 5]):
        buffer.add([1], rollouts(1, numbers))
    assert buffer.filled.tolist() == [1, 3]
    assert buffer.ordered(1)["rewards"][:, 0].tolist() == [1030, 1040, 1050]
    obs, actions, rewards, next_obs, terminated = buffer.draw(torch.tensor([1, 0, 1]), 200, torch.Generator().manual_seed(0))
    assert obs.shape == (3, 200, 1)
    torch.testing.assert_close(obs[..., 0], rewards)
    torch.testing.assert_close(obs[..., 0], actions)
    torch.testing.assert_close(next_obs, obs + 1)
    assert torch.equal(terminated == 1, rewards % 10 == 3)
    assert set(rewards[1].tolist()) == {10, 11, 12, 13}
    assert set((rewards[0] // 10).tolist()) == {103, 104, 105}
