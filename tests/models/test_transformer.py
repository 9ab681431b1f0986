"""The block stack against transformers.GPT2Model, and what makes it fast against what it replaces."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from src.models.transformer import Transformer, attention_bias, dropout, from_gpt2

WIDTH, LAYERS, LENGTH = 32, 3, 10
every_head_count = pytest.mark.parametrize("heads", [1, 4])


def gpt2(heads, dropout=0.0, width=WIDTH):
    """GPT2Model with every weight and bias random, and no positional embedding."""
    config = GPT2Config(
        vocab_size=1, n_positions=64, n_embd=width, n_layer=LAYERS, n_head=heads, activation_function="relu",
        embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(heads)
    model = GPT2Model(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.wpe.weight.data.zero_()
    return model.eval()


def ours(heads, dropout=0.0, width=WIDTH, seed=7):
    """Our stack with every weight and bias random."""
    torch.manual_seed(seed)
    model = Transformer(width, LAYERS, heads, dropout)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tokens(batch=5, length=LENGTH, padded=(0, 3, 0, 9, 1)):
    """x (B, L, D) and a mask whose rows begin with `padded` masked positions."""
    x = torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(length) >= torch.tensor(padded)[:batch, None]


@every_head_count
def test_weights_of_gpt2_give_the_outputs_of_gpt2(heads):
    theirs, model = gpt2(heads), ours(heads)
    assert model.load_state_dict(from_gpt2(theirs.state_dict())) == torch.nn.modules.module._IncompatibleKeys([], [])
    x, mask = tokens()
    with torch.no_grad():
        expected = theirs(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
        found, _ = model(x, attention_bias(mask))
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)


@every_head_count
def test_gradients_are_those_of_gpt2(heads):
    theirs, model = gpt2(heads), ours(heads)
    model.load_state_dict(from_gpt2(theirs.state_dict()))
    x, mask = tokens()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) * mask[..., None]
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    (theirs(inputs_embeds=inputs[0], attention_mask=mask.long()).last_hidden_state * weight).sum().backward()
    (model(inputs[1], attention_bias(mask))[0] * weight).sum().backward()
    torch.testing.assert_close(inputs[1].grad[mask], inputs[0].grad[mask], atol=1e-4, rtol=1e-4)
    expected = from_gpt2({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4, msg=name)


@every_head_count
@pytest.mark.parametrize("readout", [slice(1, None, 3), slice(LENGTH - 1, None), slice(4, 7)])
def test_reading_out_some_positions_gives_their_rows_of_the_full_output(heads, readout):
    model = ours(heads)
    x, mask = tokens()
    bias = attention_bias(mask)
    full, _ = model(x, bias)
    some, _ = model(x, bias, readout=readout)
    torch.testing.assert_close(some[mask[:, readout]], full[:, readout][mask[:, readout]], atol=1e-5, rtol=0)
    gradients = []
    for output in (full[:, readout], some):
        model.zero_grad()
        (output[mask[:, readout]] ** 3).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


@every_head_count
def test_a_cached_prefix_replaces_the_full_pass(heads):
    model, prefix = ours(heads), 6
    x, mask = tokens(padded=(0, 2, 0, 5, 1))  # the padding lies inside the prefix
    with torch.no_grad():
        full, _ = model(x, attention_bias(mask))
        _, caches = model(x[:, :prefix], attention_bias(mask[:, :prefix]))
        rest = x[:, prefix:]
        hidden = torch.zeros(len(x), 1, prefix).masked_fill_(~mask[:, None, :prefix], -torch.inf)
        bias = attention_bias(mask[:, prefix:])
        bias = torch.cat([hidden.expand(-1, rest.shape[1], -1), bias], 2)
        found, _ = model(rest, bias, past=caches)
        last, _ = model(rest, bias, readout=slice(rest.shape[1] - 1, None), past=caches)
    torch.testing.assert_close(found, full[:, prefix:], atol=1e-5, rtol=0)
    torch.testing.assert_close(last, full[:, -1:], atol=1e-5, rtol=0)


def test_padding_is_never_read():
    model = ours(4)
    x, mask = tokens()
    found, _ = model(x, attention_bias(mask))
    for constant in (0.0, -10.0, 1e4):
        other, _ = model(torch.where(mask[..., None], x, constant), attention_bias(mask))
        assert torch.equal(other[mask], found[mask]) and other.isfinite().all()


def test_no_position_sees_a_later_one():
    model = ours(4)
    x, mask = tokens(padded=(0,) * 5)
    full, _ = model(x, attention_bias(mask))
    for position in range(LENGTH - 1):
        changed = x.clone()
        changed[:, position + 1 :] = 3.0
        other, _ = model(changed, attention_bias(mask))
        assert torch.equal(other[:, : position + 1], full[:, : position + 1])
        assert not torch.isclose(other[:, position + 1 :], full[:, position + 1 :]).all()


def test_attention_bias_by_hand():
    bias = attention_bias(torch.tensor([[False, True, True]]))
    off = -torch.inf
    assert bias.tolist() == [[[0, off, off], [off, 0, off], [off, 0, 0]]]  # a padded position attends to itself alone


def test_dropout_is_active_in_training_only():
    x, mask = tokens()
    bias, model = attention_bias(mask), ours(4, dropout=0.3)
    evaluated, _ = model(x, bias)
    assert torch.equal(evaluated, model(x, bias)[0])
    model.train()
    assert not torch.equal(model(x, bias)[0], model(x, bias)[0])
    without = ours(4, dropout=0.0).train()
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(without(x, bias)[0], evaluated)


def test_dropout_falls_where_that_of_gpt2_falls():
    """Mean and spread of every output over many draws; leaving out one of the four places changes them visibly."""
    width, draws = 16, 6000
    theirs, model = gpt2(2, 0.2, width).train(), ours(2, 0.2, width).train()
    model.load_state_dict(from_gpt2(theirs.state_dict()))
    x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(3)).expand(draws, -1, -1).contiguous()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x).last_hidden_state
        found, _ = model(x, attention_bias(torch.ones(1, 4, dtype=torch.bool)))
    error = expected.std(0) / draws**0.5
    assert ((found.mean(0) - expected.mean(0)).abs() / error).max() < 7
    torch.testing.assert_close(found.std(0), expected.std(0), rtol=0.08, atol=0.01)


def test_bfloat16_stays_near_float32():
    model = ours(4)
    x, mask = tokens()
    expected, _ = model(x, attention_bias(mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = model(x, attention_bias(mask))
    assert (found - expected)[mask].abs().mean() < 0.03 * expected[mask].abs().mean()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.05])
@pytest.mark.parametrize("shape", [(999, 1001), (3,)])
def test_dropout_drops_its_share_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(shape), p)
    torch.testing.assert_close(dropped[dropped > 0], torch.full_like(dropped[dropped > 0], 1 / (1 - p)), rtol=1e-4, atol=0)
    if dropped.numel() > 1000:
        assert (dropped == 0).float().mean() == pytest.approx(p, abs=2e-3)
        assert dropped.mean() == pytest.approx(1, abs=3e-3)
        neighbours = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
        assert neighbours.float().mean() == pytest.approx(p * p, abs=2e-3)  # independent


def test_dropout_of_nothing_is_the_identity():
    x = torch.randn(5, 7)
    assert torch.equal(dropout(x, 0.0), x)


def test_the_largest_dropout_of_the_flag_gives_numbers():
    assert dropout(torch.ones(64), 1 - 1e-6).isfinite().all()
