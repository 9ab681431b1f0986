"""Online Decision Transformer: the stochastic head, the buffer of whole episodes, the policy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from online_dt_helpers import episodes
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from baselines.online_dt.lamb import Lamb
from baselines.online_dt.policy import Agent, ModelSettings, Policy
from baselines.online_dt.replay import TrajectoryBuffer, best, delayed
from baselines.online_dt.training import Entropy, Learner, Optimisation
from src.models.heads import TEMPERATURE_RANGE, ActionDistribution, GaussianHead, Temperature
from src.run.seeding import torch_generator

# -------------------------------------------------------------------------------------------------- the stochastic head


def test_log_probability_matches_torch_with_its_jacobian():
    mean, log_std = torch.randn(2, 50, 3, dtype=torch.float64, generator=torch_generator(0, "parameters")) * 0.5
    log_std = log_std - 1
    ours = ActionDistribution(mean, log_std, squash=True)
    actions = ours.sample(torch_generator(0, "sample"))
    theirs = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions).sum(-1), rtol=1e-6, atol=1e-6)
    plain = ActionDistribution(mean, log_std, squash=False)
    torch.testing.assert_close(plain.log_prob(actions), Normal(mean, log_std.exp()).log_prob(actions).sum(-1))
    torch.testing.assert_close(plain.entropy(), Normal(mean, log_std.exp()).entropy().sum(-1))


def test_density_and_entropy_match_numerical_integration():
    grid = torch.linspace(-1, 1, 400_001, dtype=torch.float64)[1:-1]
    for mean, log_std in ((0.3, -1.0), (-1.0, 0.0), (0.0, math.log(0.5))):
        one = torch.full((1,), mean, dtype=torch.float64), torch.full((1,), log_std, dtype=torch.float64)
        distribution = ActionDistribution(*one, squash=True)
        log_density = distribution.log_prob(grid[:, None])
        assert torch.trapezoid(log_density.exp(), grid).item() == pytest.approx(1, abs=1e-4)
        entropy = torch.trapezoid(-log_density.exp() * log_density, grid).item()
        assert distribution.entropy(200_000, torch_generator(1, "entropy")).item() == pytest.approx(entropy, abs=5e-3)


def test_actions_on_the_bounds_have_finite_gradients():
    head = GaussianHead(8, 3, squash=True)
    distribution = head(torch.randn(4, 8))
    loss = -distribution.log_prob(torch.tensor([[1.0, -1.0, 0.0]]).expand(4, -1)).mean() - distribution.entropy().mean()
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in head.parameters())
    far = ActionDistribution(torch.full((1, 1), 50.0), torch.full((1, 1), 2.0), squash=True)
    assert far.entropy().isfinite().all() and far.log_prob(far.sample()).isfinite().all()


def test_temperature_moves_towards_the_target_and_stays_bounded():
    for entropy, sign in ((0.0, -1), (-2.0, 1)):
        temperature = Temperature(0.1, target=-1.0)
        temperature.update(torch.tensor(entropy))
        assert sign * (temperature.value.item() - 0.1) > 0
    temperature, fixed = Temperature(0.1, target=-1.0, learning_rate=0.05), Temperature(0.1, target=None)
    for _ in range(2000):  # a policy whose entropy grows with its bonus: H = log λ
        temperature.update(temperature.value.log())
        fixed.update(torch.tensor(5.0))
    assert temperature.value.item() == pytest.approx(math.exp(-1), rel=0.02)
    assert fixed.value.item() == pytest.approx(0.1)
    for entropy, bound in ((1e3, TEMPERATURE_RANGE[0]), (-1e3, TEMPERATURE_RANGE[1])):
        temperature = Temperature(0.1, target=0.0, learning_rate=20.0)
        for _ in range(5):
            temperature.update(torch.tensor(entropy))
        assert temperature.value.item() == pytest.approx(bound, rel=1e-4)


def test_temperature_state_holds_its_optimizer(tmp_path):
    entropies = torch.linspace(-3, 1, 20)
    whole = Temperature(0.1, target=-1.0)
    for entropy in entropies[:10]:
        whole.update(entropy)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = Temperature(0.5, target=-1.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for entropy in entropies[10:]:
        whole.update(entropy)
        resumed.update(entropy)
    assert torch.equal(whole.value, resumed.value)


def test_each_phase_has_its_own_temperature_rate():
    former, later = Temperature(0.1, target=-1.0, learning_rate=1e-4), Temperature(0.1, target=-1.0, learning_rate=1e-2)
    former.update(torch.tensor(1.0))
    later.load_state_dict(former.state_dict())
    before = later.value.item()
    later.update(torch.tensor(1.0))
    assert math.log(before / later.value.item()) == pytest.approx(1e-2, rel=1e-2)  # Adam moves log λ by its rate


def test_lamb_against_its_formula():
    start = torch.randn(4, 3)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    lamb, adam = Lamb([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01)
    for _ in range(20):
        gradient = 3 * torch.randn(4, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient / max(1, gradient.norm().item())
        lamb.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)

    weight, zero = torch.tensor([3.0, 4.0], requires_grad=True), torch.zeros(2, requires_grad=True)
    lamb = Lamb([weight, zero], lr=0.1, weight_decay=0.5)
    weight.grad, zero.grad = torch.tensor([0.3, -0.4]), torch.tensor([0.5, 0.5])
    lamb.step()  # bias-corrected, the first step of Adam is the sign of the gradient
    update = np.array([1.0, -1.0]) + 0.5 * np.array([3.0, 4.0])
    expected = np.array([3.0, 4.0]) - 0.1 * 5 / np.linalg.norm(update) * update
    np.testing.assert_allclose(weight.detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(zero.detach(), [-0.1, -0.1], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the buffer


def test_return_to_go_is_the_sum_of_the_stored_rewards():
    observations, actions, rewards, lengths = episodes([7, 3, 5])
    buffer = TrajectoryBuffer(observations, actions, rewards, lengths, 4, 9)
    buffer.add(observations[0, :5], actions[0, :4], rewards[0, :4])
    rewards = torch.cat([rewards, rewards[:1]])
    window = buffer.gather(torch.arange(4), torch.tensor([2, 0, 4, 1]), 4)
    for row, (start, length) in enumerate([(2, 7), (0, 3), (4, 5), (1, 4)]):
        wanted = [rewards[row, step:length].sum().item() for step in range(start, min(start + 4, length))]
        assert window["returns_to_go"][row][window["mask"][row]].tolist() == pytest.approx(wanted, rel=1e-5)
        assert window["mask"][row].sum() == len(wanted) and window["mask"][row, -1]


def test_sampling_is_by_length_with_uniform_starts():
    buffer = TrajectoryBuffer(*episodes([6, 2, 4]), 5, 6)  # two rows are free
    window = buffer.draw(24_000, 3, torch_generator(0, "draw"))
    first = window["mask"].float().argmax(1)
    starts = window["timesteps"][torch.arange(24_000), first]
    left = window["returns_to_go"][torch.arange(24_000), first]
    pairs, counts = torch.stack([starts, left], 1).unique(dim=0, return_counts=True)
    assert len(pairs) == 12 and counts.min() > 1800 and counts.max() < 2200  # 2000 each


def test_buffer_keeps_the_best_and_drops_the_worst_first():
    returns, lengths = np.array([5.0, 1.0, 4.0, 2.0, 3.0]), np.array([10, 10, 10, 10, 10])
    assert best(returns, lengths, count=3).tolist() == [4, 2, 0]
    assert best(returns, lengths, share=0.4).tolist() == [2, 0] and best(returns, lengths, share=0.01).tolist() == [0]
    assert best(returns, lengths).tolist() == [1, 3, 4, 2, 0]

    source = episodes([2, 2, 2])
    before = source[2].clone()
    for capacity, expected in ((3, [13.0, 14.0, 12.0]), (5, [12.0, 13.0, 14.0, 10.0, 11.0])):  # full; two free rows first
        buffer = TrajectoryBuffer(*source, capacity, 2)
        for value in (10.0, 11.0, 12.0, 13.0, 14.0):
            buffer.add(torch.zeros(3, 2), torch.zeros(2, 1), torch.tensor([0.0, value]))
        assert buffer.rewards[:, 1].tolist() == expected
    assert torch.equal(source[2], before)  # the dataset itself is not touched


def test_windows_by_their_end_reach_every_action():
    """Of behaviour cloning, which learns the last action of a window: uniform over the steps, padded where the episode begins."""
    actions = torch.arange(10.0).view(1, 10, 1)
    buffer = TrajectoryBuffer(torch.zeros(1, 11, 2), actions, torch.ones(1, 10), torch.tensor([10]), 1, 10)
    window = buffer.draw(5000, 4, torch.Generator().manual_seed(0), by_end=True)
    last = window["actions"][:, -1, 0]
    assert np.bincount(last.long(), minlength=10) == pytest.approx(np.full(10, 500), rel=0.2)
    assert window["mask"][:, -1].all()
    for row in range(50):
        step, mask = int(last[row]), window["mask"][row]
        assert mask.sum() == min(step + 1, 4) and torch.equal(mask, mask.sort().values)  # padding on the left
        assert window["timesteps"][row, mask].tolist() == list(range(max(step - 3, 0), step + 1))
    started = buffer.draw(5000, 4, torch.Generator().manual_seed(0))["actions"][:, -1, 0]
    assert started.min() == 3  # uniform starts never end earlier


def test_buffer_may_keep_the_highest_returns():
    observations, actions, rewards, lengths = episodes([2, 2, 2])
    rewards[:, 0], rewards[:, 1] = 0.0, torch.tensor([3.0, 9.0, 5.0])
    buffer = TrajectoryBuffer(observations, actions, rewards, lengths, 4, 2, keep_best=True)
    rows = [
        buffer.add(torch.zeros(3, 2), torch.zeros(2, 1), torch.tensor([0.0, value])) for value in (1.0, 0.5, 7.0, 6.0, 2.0, 5.0)
    ]  # a free row first; 0.5 is below all; then 1 and 3 go; 2 and 5 are not above the lowest, 5
    assert rows == [3, None, 3, 0, None, None] and buffer.rewards[:, 1].tolist() == [6.0, 9.0, 5.0, 7.0] and buffer.added == 6
    short = buffer.add(torch.zeros(2, 2), torch.zeros(1, 1), torch.tensor([8.0]))  # what the longer one left behind earns nothing
    assert short == 2 and buffer.add(torch.zeros(3, 2), torch.zeros(2, 1), torch.tensor([0.0, 6.5])) == 0


def test_delayed_reward_stands_at_the_last_step():
    rewards = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]], np.float32)
    assert delayed(rewards, np.array([3, 2])).tolist() == [[0, 0, 6], [0, 9, 0]]


# ------------------------------------------------------------------------------------------------------------ the policy


SETTINGS = ModelSettings(
    embed_dim=16, n_layer=2, n_head=2, dropout=0.0, K=4, remove_pos_embs=True, stochastic=True, return_scale=10.0,
    stochastic_tanh=True,
)  # fmt: skip


@pytest.mark.parametrize("model_type", ["dt", "bc"])
def test_padding_never_changes_the_prediction(model_type):
    torch.manual_seed(0)
    policy = Policy(2, 1, dataclasses.replace(SETTINGS, model_type=model_type), 9).eval()
    policy.set_scales(
        np.ones(2, np.float32), np.full(2, 2, np.float32), np.full(2, 10, np.float32), np.float32([-2]), np.float32([2])
    )
    window = TrajectoryBuffer(*episodes([2, 7, 3]), 3, 9).gather(torch.tensor([0, 1, 2]), torch.tensor([0, 3, 1]), 4)
    mean, mask = policy(window).mean, window["mask"]
    for row in range(3):
        alone = {name: values[row : row + 1, mask[row]] for name, values in window.items()}
        expected = policy(alone).mean
        kept = mean[row : row + 1, mask[row]] if model_type == "dt" else mean[row : row + 1]
        torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)
    poisoned = {name: torch.where(mask if values.ndim == 2 else mask[..., None], values, 77) for name, values in window.items()}
    chosen, (targets, rows) = policy(poisoned | {"mask": mask}), policy.targets(window)
    torch.testing.assert_close(chosen.mean[rows], mean[rows])
    torch.testing.assert_close(
        chosen.log_prob(policy.scaled(window["actions"][:, -mean.shape[1] :]))[rows].shape, targets.shape[:1]
    )


def small_learner(ema_decay=0.0):
    optimisation = Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup_steps=1, ema_decay=ema_decay)
    entropy = Entropy(use_entropy=True, target_entropy=True, approximate_entropy_samples=1)
    return Learner(Policy(2, 1, SETTINGS, 9), optimisation, entropy, seed=0)


def test_what_acts_is_the_average_of_the_weights():
    """With decay 0.5 and the early decays 1/10 and 2/11 below it: w̄₁ = 0.1 w₀ + 0.9 w₁, w̄₂ = 2/11 w̄₁ + 9/11 w₂."""
    window = TrajectoryBuffer(*episodes([5, 7, 3]), 3, 9).gather(torch.tensor([0, 1, 2]), torch.tensor([0, 3, 1]), 2)
    learner = small_learner(ema_decay=0.5)
    weights = []
    for step in range(3):
        weights.append([weight.detach().clone() for weight in learner.policy.parameters()])
        if step < 2:
            learner.update(window)
    assert not torch.equal(weights[1][0], weights[2][0])
    for first, second, third, average in zip(*weights, learner.average.parameters(), strict=True):
        torch.testing.assert_close(average, 2 / 11 * (0.1 * first + 0.9 * second) + 9 / 11 * third)
        assert not average.requires_grad
    again = small_learner(ema_decay=0.5)
    again.load_state_dict(learner.state_dict())
    assert all(map(torch.equal, again.average.parameters(), learner.average.parameters()))
    plain = small_learner()
    assert plain.average is plain.policy


def test_exploration_scales_the_standard_deviation():
    policy = Policy(2, 1, SETTINGS, 9)
    observations = episodes([7])[0][:, 0].numpy()
    actions = {}
    for scale in (None, 1.0, 0.25):
        agent = Agent(policy, 5.0, 3, None if scale is None else torch.Generator().manual_seed(0), scale or 1.0)
        agent.start(observations)
        actions[scale] = np.arctanh(agent.act())  # whose bounds are -1 and 1
    np.testing.assert_allclose(actions[0.25] - actions[None], 0.25 * (actions[1.0] - actions[None]), rtol=1e-3)
    assert abs(actions[1.0] - actions[None]) > 1e-3


def test_padding_never_changes_an_update():
    """The spec's original averaged the entropy over the padding too."""
    window = TrajectoryBuffer(*episodes([2, 7, 3]), 3, 9).gather(torch.tensor([0, 1, 2]), torch.tensor([0, 3, 1]), 4)
    mask = window["mask"]
    poisoned = {name: torch.where(mask if values.ndim == 2 else mask[..., None], values, 7) for name, values in window.items()}
    results, learned = [], []
    for batch in (window, poisoned | {"mask": mask}):
        torch.manual_seed(0)
        learner = small_learner()
        results.append(learner.update(batch))
        learned.append(torch.cat([weight.flatten() for weight in learner.policy.parameters()]))
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    torch.testing.assert_close(*learned)


def test_acting_is_the_last_position_of_training():
    torch.manual_seed(0)
    policy = Policy(2, 1, dataclasses.replace(SETTINGS, remove_pos_embs=False), 9)
    observations, actions, rewards, _ = episodes([7])
    agent = Agent(policy, 5.0, context=3)
    agent.start(observations[:, 0].numpy())
    left = 5.0
    for step in range(7):
        played = agent.act()
        first = max(0, step - 2)
        spent = rewards[0, :step].cumsum(0)
        window = {
            "returns_to_go": torch.tensor([[5.0, *(5 - spent).tolist()][first : step + 1]]),
            "observations": observations[:, first : step + 1],
            "actions": actions[:, first : step + 1],
            "timesteps": torch.arange(first, step + 1)[None],
            "mask": torch.ones(1, step + 1 - first, dtype=torch.bool),
        }
        np.testing.assert_allclose(played, policy(window).centre()[:, -1].detach(), atol=1e-5)
        agent.observe(actions[:, step].numpy(), rewards[:, step].numpy(), observations[:, step + 1].numpy())
        left -= rewards[0, step].item()
        assert agent.returns_to_go[-1].item() == pytest.approx(left, abs=1e-4) and len(agent.actions) <= 3
