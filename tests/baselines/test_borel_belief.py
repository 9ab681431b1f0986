"""BOReL: the belief model and its losses.

`defect N` in a test's docstring names a fault of the original code that must not come back.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from baselines.borel.beliefs import belief_rewards, beliefs_of
from baselines.borel.vae import BeliefModel, LossSettings, gaussian_kl, task_spread

torch.set_num_threads(1)


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
