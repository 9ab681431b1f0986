"""The policy: what each output may depend on, and acting against the training pass."""

import numpy as np
import pytest
import torch
from helpers import random_episodes, random_steps, tiny_policy, tiny_world_model

from src.data.windows import EpisodeTensors
from src.models.meta_dt import MetaDT, action_loss
from src.models.meta_dt_agent import Adaptation, MetaDTAgent, build_episodes, training_errors
from src.models.world_model import episode_contexts, prediction_errors

K, PROMPT = 6, 4
INPUTS = ("returns_to_go", "observations", "contexts", "actions")


def lived(rows, number=0, steps=9):
    """A random Episode as `rollout` gives it."""
    observations, actions, rewards = (values.numpy() for values in random_episodes(rows, steps, seed=number))
    return {"observations": observations, "actions": actions, "rewards": rewards, "lengths": np.full(rows, steps)}


def prompts_of(agent):
    """The agent's prompts as they are before they are encoded, in the order that `adapt` makes them."""
    prompts, encode = [], agent.policy.encode_prompt

    def noted(prompt):
        prompts.append(prompt)
        return encode(prompt)

    agent.policy.encode_prompt = noted
    return prompts


def changed(steps, name, position, value=5.0):
    """A copy of `steps` with another value of one input at one position."""
    copy = steps[name].clone()
    copy[:, position] = copy[:, position] + value if copy.is_floating_point() else (copy[:, position] + 3) % 20
    return steps | {name: copy}


def moves(policy, before, history, prompt=None):
    """(K,) whether the output at each position differs from `before`."""
    return (policy(history, prompt) != before).flatten(2).any(2).any(0)


# ------------------------------------------------------------------------------------------------------------ causality


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("name", [*INPUTS, "timesteps"])
def test_an_output_sees_its_past_and_its_own_state(name, prompted):
    policy, history = tiny_policy(), random_steps(3, K)
    prompt = random_steps(3, PROMPT, seed=1) if prompted else None
    before = policy(history, prompt)
    assert before.shape == (3, K, 2)
    for position in range(K):
        # a_t comes after the token that a_t is read from; a time step enters all three tokens
        first = position + (name == "actions")
        expected = torch.arange(K) >= first
        assert torch.equal(moves(policy, before, changed(history, name, position), prompt), expected)


def test_time_within_the_window():
    """The same window at another time is the same; its order counts; padding on the left does not."""
    policy, history = tiny_policy(window_time=True), random_steps(3, K)
    before = policy(history)
    later = history | {"timesteps": history["timesteps"] + 7}
    assert torch.equal(policy(later), before) and not torch.equal(tiny_policy()(later), tiny_policy()(history))
    moved = policy({name: values.roll(1, 1) for name, values in history.items()})
    assert not torch.allclose(moved[:, -1], before[:, -2])
    torch.testing.assert_close(policy.act({name: values for name, values in history.items() if name != "mask"}), before[:, -1])
    cut = history | {"mask": torch.arange(K).expand(3, K) >= 2}
    alone = {name: values[:, 2:] for name, values in history.items()}
    torch.testing.assert_close(policy(cut)[:, 2:], policy(alone))
    torch.testing.assert_close(policy.act(cut), policy(alone)[:, -1])


@pytest.mark.parametrize("prompted", [False, True])
def test_a_policy_that_ignores_returns(prompted):
    """Two tokens per step: causal as with three, the same acting as in training, and no target changes an action."""
    policy, history = tiny_policy(condition_size=0), random_steps(3, K)
    prompt = random_steps(3, PROMPT, seed=1) if prompted else None
    before = policy(history, prompt)
    assert policy.history_tokens(history).shape[1] == 2 * K
    for position in range(K):
        for name in (*INPUTS, "timesteps"):
            seen = (
                torch.arange(K) >= position + (name == "actions") if name != "returns_to_go" else torch.zeros(K, dtype=torch.bool)
            )
            assert torch.equal(moves(policy, before, changed(history, name, position), prompt), seen)
    found = policy.act(history, policy.encode_prompt(prompt) if prompted else None)
    torch.testing.assert_close(found, before[:, -1], atol=1e-5, rtol=0)
    before.square().mean().backward()
    gradients = {
        name: parameter.grad for name, parameter in policy.named_parameters() if prompted or not name.startswith("prompt")
    }
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    agent = MetaDTAgent(policy, tiny_world_model(), K, PROMPT, None)
    agent.adapt([])
    agent.start(np.zeros((2, 2)))
    assert np.isfinite(agent.act()).all()


@pytest.mark.parametrize("name", ["returns_to_go", "observations", "actions", "timesteps"])
def test_the_prompt_matters_everywhere(name):
    policy, history, prompt = tiny_policy(), random_steps(3, K), random_steps(3, PROMPT, seed=1)
    before = policy(history, prompt)
    assert moves(policy, before, history, None).all()
    for position in range(PROMPT):
        assert moves(policy, before, history, changed(prompt, name, position)).all()


def test_the_prompt_carries_no_z():
    policy, history = tiny_policy(), random_steps(3, K)
    prompt = random_steps(3, PROMPT, seed=1)
    before = policy(history, prompt)
    for position in range(PROMPT):
        assert not moves(policy, before, history, changed(prompt, "contexts", position)).any()


def test_rows_do_not_see_each_other():
    policy, history, prompt = tiny_policy(), random_steps(3, K), random_steps(3, PROMPT, seed=1)
    before = policy(history, prompt)
    for steps in (history, prompt):
        copy = {name: values.clone() for name, values in steps.items()}
        for name in INPUTS:
            copy[name][1] += 5
        after = policy(copy, prompt) if steps is history else policy(history, copy)
        assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])


@pytest.mark.parametrize("constant", [0.0, -10.0, 1e6])
def test_padding_constants_change_nothing(constant):
    policy, history, prompt = tiny_policy(), random_steps(3, K), random_steps(3, PROMPT, seed=1)
    history["mask"][0, :2], history["mask"][1, :5] = False, False
    prompt["mask"][2, 2:] = False
    before = policy(history, prompt)

    def padded(steps):
        out = steps["mask"].logical_not()
        filled = {
            name: torch.where(out.view(*out.shape, *[1] * (steps[name].ndim - 2)), constant, steps[name]) for name in INPUTS
        }
        return steps | filled | {"timesteps": torch.where(out, 19, steps["timesteps"])}

    after = policy(padded(history), padded(prompt))
    assert torch.equal(after[history["mask"]], before[history["mask"]])


def test_padding_is_as_if_it_were_not_there():
    policy, history, prompt = tiny_policy(), random_steps(2, K), random_steps(2, PROMPT, seed=1)
    history["mask"][:, :2], prompt["mask"][:, 3:] = False, False
    short = {name: values[:, 2:] for name, values in history.items()}
    short_prompt = {name: values[:, :3] for name, values in prompt.items()}
    torch.testing.assert_close(policy(history, prompt)[:, 2:], policy(short, short_prompt), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("length", [1, 3, K])
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_act_is_the_last_position_of_forward(length, prompted, heads):
    policy, history = tiny_policy(heads=heads), random_steps(3, length)
    prompt = random_steps(3, PROMPT, seed=1) if prompted else None
    if prompted:
        prompt["mask"][1, 2:] = False
    expected = policy(history, prompt)[:, -1]
    inputs = {name: values for name, values in history.items() if name != "mask"}
    inputs["timesteps"] = inputs["timesteps"][:1]  # as the agent gives them: one row for all
    found = policy.act(inputs, policy.encode_prompt(prompt) if prompted else None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize(("use_context", "horizon"), [(True, 4), (True, 0), (False, 4)])
@torch.inference_mode()  # the prompt is the agent's, made in it
def test_an_episode_longer_than_k_is_acted_as_it_was_trained(prompted, use_context, horizon):
    """The agent against the training path: windows gathered from the finished episode, contexts computed at once."""
    policy, world_model, steps = tiny_policy(), tiny_world_model(horizon=horizon), 11
    observations, actions, rewards = random_episodes(4, steps)
    targets = torch.tensor([3.0, -1.0, 0.0, 10.0])
    settings = Adaptation(context="running" if use_context else "none")
    agent = MetaDTAgent(policy, world_model, K, PROMPT, targets.numpy(), settings)
    prompts = prompts_of(agent)
    agent.adapt([])
    if prompted:
        agent.adapt([lived(4)])
    prompt = prompts[0] if prompted else None
    agent.start(observations[:, 0].numpy())
    found = []
    for t in range(steps):
        found.append(torch.from_numpy(agent.act()))
        agent.observe(actions[:, t].numpy(), rewards[:, t].numpy(), observations[:, t + 1].numpy())
    contexts = episode_contexts(world_model, observations, actions, rewards) * use_context
    episodes = EpisodeTensors(observations, actions, rewards, torch.full((4,), steps), contexts, rewards)
    episodes.returns_to_go = targets[:, None] - torch.cat([torch.zeros(4, 1), rewards.cumsum(1)[:, :-1]], 1)
    for t in range(steps):
        first = max(0, t + 1 - K)
        history = episodes.gather(torch.arange(4), torch.full((4,), first), t + 1 - first)
        expected = policy(history, prompt)[:, -1]
        torch.testing.assert_close(found[t], expected, atol=1e-5, rtol=0)


def test_returns_to_go_lose_what_was_earned():
    seen = []

    class Spy(MetaDT):
        def act(self, history, encoded_prompt=None):
            seen.append(history["returns_to_go"].clone())
            return torch.zeros(1, 2)

    policy, world_model = Spy(2, 2, 20, 10.0, 16, 1), tiny_world_model()
    agent = MetaDTAgent(policy, world_model, 2, PROMPT, [5.0])
    agent.adapt([])
    agent.start(np.zeros((1, 2)))
    for reward in (-9.0, 2.0):
        agent.act()
        agent.observe(np.zeros((1, 2)), [reward], np.zeros((1, 2)))
    agent.act()
    assert [values[0].tolist() for values in seen] == [[5.0], [5.0, 14.0], [14.0, 12.0]]  # K = 2


# ---------------------------------------------------------------------------------------------------------- the prompt


def test_the_prompt_is_cut_from_the_rows_own_episode():
    policy, world_model = tiny_policy(), tiny_world_model(horizon=2)
    pool = [lived(5, 0)]
    agent = MetaDTAgent(policy, world_model, K, PROMPT, 0.0, Adaptation(prompt_select="argmax"))
    prompts = prompts_of(agent)
    agent.adapt(pool)
    (prompt,) = prompts
    for row in range(5):
        arrays = [torch.from_numpy(pool[0][key][row : row + 1]) for key in ("observations", "actions", "rewards")]
        episode = build_episodes(world_model, *arrays, None, (1.0, 1.0))
        scores = episode.errors[0].unfold(0, PROMPT, 1).sum(1)
        start = 2 + int(scores[2:].argmax())  # the first h steps are skipped
        assert prompt["timesteps"][row].tolist() == list(range(start, start + PROMPT))
        assert torch.equal(prompt["observations"][row], arrays[0][0, start : start + PROMPT])
        to_go = [float(arrays[2][0, t:].sum()) for t in range(start, start + PROMPT)]
        np.testing.assert_allclose(prompt["returns_to_go"][row], to_go, atol=1e-5)


def test_no_prompt_is_an_agent_that_was_shown_nothing_but_its_context():
    """prompt_select none: running contexts leave the policy as in zero-shot; carried ones reach it all the same."""
    found = {}
    for context in ("running", "carried"):
        for pool in ((), (lived(3),)):
            agent = MetaDTAgent(tiny_policy(), tiny_world_model(), K, PROMPT, 0.0, Adaptation(context, "none"))
            agent.adapt([])
            agent.adapt(list(pool))
            agent.start(np.zeros((3, 2), np.float32))
            found[context, len(pool)] = agent.act()
    np.testing.assert_array_equal(found["running", 0], found["running", 1])
    np.testing.assert_array_equal(found["carried", 0], found["running", 0])
    assert not np.allclose(found["carried", 1], found["running", 1])


def test_a_context_may_be_carried_from_the_warm_up_episodes():
    """Every z of an episode after warm-up is the mean of those episodes' last ones, up to their ends; before any, or as the
    ablation, nothing changes."""
    lengths, keys = np.array([9, 4, 1, 9]), ("observations", "actions", "rewards")
    world_model, pool = tiny_world_model(horizon=0), [lived(4, number) | {"lengths": lengths} for number in range(3)]
    played = pool[-1]
    ends = [
        episode_contexts(world_model, *(torch.from_numpy(episode[key]) for key in keys))[np.arange(4), lengths]
        for episode in pool
    ]

    def play(context, warm=True):
        agent = MetaDTAgent(tiny_policy(), world_model, K, PROMPT, 0.0, Adaptation(context))
        agent.adapt([])
        if warm:
            agent.adapt(pool)
        agent.start(played["observations"][:, 0])
        found = []
        for step in range(9):
            found.append(agent.act())
            agent.observe(played["actions"][:, step], played["rewards"][:, step], played["observations"][:, step + 1])
        return agent.contexts[:], np.stack(found)

    contexts, acted = play("carried")
    torch.testing.assert_close(contexts, torch.stack(ends).mean(0)[:, None].expand(-1, 10, -1))
    assert not np.allclose(acted, play("running")[1])
    np.testing.assert_array_equal(play("carried", warm=False)[1], play("running", warm=False)[1])
    blind = play("none")
    assert not blind[0].any() and not np.allclose(blind[1], play("running")[1])


def test_warm_up_episodes_try_known_contexts():
    """Each after the first keeps the next known context; the one after them that of the best return."""
    world_model, pool = tiny_world_model(horizon=0), [lived(5, number) for number in range(4)]
    known = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 16)).astype(np.float32))
    settings = Adaptation("tried")
    agent = MetaDTAgent(tiny_policy(), world_model, K, PROMPT, 0.0, settings, warmup=4, known_contexts=known)
    kept = [known[0], known[0], known[1], known[0]]  # begins again where there are no more
    arrays = (torch.from_numpy(pool[0][key]) for key in ("observations", "actions", "rewards"))
    first = episode_contexts(world_model, *arrays)[:, -1]
    agent.adapt([])
    for number in range(1, 4):
        agent.adapt(pool[:number])
        assert torch.equal(agent.carried, kept[number].expand(5, -1))
    returns = np.stack([episode["rewards"].sum(1) for episode in pool], 1)
    agent.adapt(pool)
    for row, best in enumerate(returns.argmax(1)):
        torch.testing.assert_close(agent.carried[row], first[row] if best == 0 else kept[best])
    assert 0 in returns.argmax(1) and len(set(returns.argmax(1))) > 1


def test_prompts_of_running_contexts_are_what_the_last_context_misses():
    world_model, arrays = tiny_world_model(horizon=0), random_episodes(3, 9)
    lengths = torch.tensor([9, 6, 9])
    episodes = build_episodes(world_model, *arrays, lengths, (2.0, 3.0))
    contexts = episode_contexts(world_model, *arrays)
    torch.testing.assert_close(episodes.contexts, contexts)
    final = contexts[torch.arange(3), lengths]
    expected = prediction_errors(world_model, *arrays, final[:, None].expand(-1, 9, -1), (2.0, 3.0))
    torch.testing.assert_close(episodes.errors, expected)


def test_top3_draws_among_the_three_best():
    policy, world_model = tiny_policy(), tiny_world_model()
    episode = lived(900)
    observations = episode["observations"]
    pool = [
        episode | {"observations": observations + number, "rewards": np.full((900, 9), level, np.float32)}
        for number, level in enumerate([-3.0, -1.0, -2.0, -4.0, -0.5])
    ]
    agent = MetaDTAgent(policy, world_model, K, PROMPT, 0.0, Adaptation(prompt_select="last"))
    prompts = prompts_of(agent)
    agent.adapt(pool)
    agent.adapt(pool[:1])
    prompt, one = prompts
    offset = prompt["observations"][:, -1] - torch.from_numpy(observations[:, 8])
    chosen, counts = offset[:, 0].round().unique(return_counts=True)
    assert chosen.tolist() == [1, 2, 4] and ((counts - 300).abs() < 75).all()
    torch.testing.assert_close(one["observations"][:, -1], torch.from_numpy(observations[:, 8]))


def test_error_scale_is_the_root_mean_square_of_each_head():
    world_model, (observations, actions, rewards) = tiny_world_model(), random_episodes(3, 7)
    lengths = torch.tensor([7, 4, 2])
    contexts = episode_contexts(world_model, observations, actions, rewards)
    reward_scale, state_scale = training_errors(world_model, observations, actions, rewards, lengths, contexts)
    inside = torch.arange(7) < lengths[:, None]
    reward, state = world_model.decode(observations[:, :7], actions, observations[:, 1:], contexts[:, :7])
    errors = (reward - world_model.standardise("reward", rewards[..., None]))[..., 0]
    assert reward_scale == pytest.approx(errors[inside].square().mean().sqrt().item(), rel=1e-5)
    errors = (state - world_model.standardise("observation", observations[:, 1:])).abs().sum(-1)
    assert state_scale == pytest.approx(errors[inside].square().mean().sqrt().item(), rel=1e-5)


def test_no_context_ignores_z_and_keeps_the_choice_of_the_prompt():
    world_model, arrays = tiny_world_model(), random_episodes(3, 9)
    with_z, without = (build_episodes(world_model, *arrays, None, (1.0, 1.0), use) for use in (True, False))
    assert not without.contexts.any() and with_z.contexts.any()
    assert torch.equal(with_z.errors, without.errors)
    # another world model: nothing that the policy is fed changes but the choice
    other = build_episodes(tiny_world_model(seed=5), *arrays, None, (1.0, 1.0), False)
    rows, starts = torch.arange(3), torch.full((3,), 2)
    for name, values in without.gather(rows, starts, K).items():
        assert torch.equal(values, other.gather(rows, starts, K)[name])
    agents = [MetaDTAgent(tiny_policy(), tiny_world_model(seed=s), K, PROMPT, 0.0, Adaptation("none")) for s in (0, 5)]
    for agent in agents:
        agent.adapt([])
        agent.start(arrays[0][:, 0].numpy())
        agent.observe(arrays[1][:, 0].numpy(), arrays[2][:, 0].numpy(), arrays[0][:, 1].numpy())
    np.testing.assert_array_equal(agents[0].act(), agents[1].act())


# ----------------------------------------------------------------------------------------------------- scale, gradients


def test_actions_are_scaled_to_the_bounds():
    bounds = torch.tensor([0.1, 3.0])
    plain, scaled = tiny_policy(), tiny_policy(action_scale=bounds)
    scaled.load_state_dict(plain.state_dict() | {"action_scale": bounds})
    history = random_steps(3, K)
    larger = history | {"actions": history["actions"] * bounds}
    torch.testing.assert_close(scaled(larger), plain(history) * bounds)
    assert plain(history).abs().max() <= 1 and (scaled(larger).abs() <= bounds).all()
    assert tiny_policy(action_scale=np.array([0.1, 3.0])).action_scale.dtype == torch.float32  # of a space of float64


def test_units_of_the_inputs():
    """Returns-to-go are divided by the scale, observations standardised, inside the model."""
    policy, history = tiny_policy(), random_steps(3, K)
    other = tiny_policy()
    other.load_state_dict(policy.state_dict())
    other.return_scale = 100 * policy.return_scale
    std = policy.observation_std + 1e-6
    other.set_normaliser(torch.zeros(2), torch.ones(2) - 1e-6)
    moved = history | {
        "returns_to_go": 100 * history["returns_to_go"],
        "observations": (history["observations"] - policy.observation_mean) / std,
    }
    torch.testing.assert_close(other(moved), policy(history), atol=1e-5, rtol=1e-5)


def test_loss_by_hand():
    predicted = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [9.0, 9.0]]])
    actions = torch.tensor([[[0.0, 2.0], [3.0, 0.0]], [[2.0, 4.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    # squared errors in units of the scale (1, 2): (1, 0), (0, 4), (4, 4)
    scale = torch.tensor([1.0, 2.0])
    assert action_loss(predicted, actions, mask, scale).item() == pytest.approx(13 / 6)


def test_every_parameter_gets_a_gradient():
    policy = tiny_policy().train()
    history, prompt = random_steps(20, K, first=4), random_steps(20, PROMPT, seed=1)
    action_loss(policy(history, prompt), history["actions"], history["mask"], policy.action_scale).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert policy.history.timesteps.weight.grad.any(1).tolist() == [4 <= t < 4 + K for t in range(20)]
    assert policy.prompt.timesteps.weight.grad.any(1).tolist() == [t < PROMPT for t in range(20)]


def test_without_a_prompt_its_parameters_stay():
    policy, history = tiny_policy().train(), random_steps(4, K)
    action_loss(policy(history), history["actions"], history["mask"], policy.action_scale).backward()
    untouched = {name for name, parameter in policy.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert untouched == {name for name, _ in policy.named_parameters() if name.startswith("prompt.")}


def test_padding_gets_no_gradient():
    policy, history = tiny_policy().train(), random_steps(4, K)
    history["mask"][:, :3] = False
    history["observations"].requires_grad_()
    action_loss(policy(history), history["actions"], history["mask"], policy.action_scale).backward()
    assert not history["observations"].grad[:, :3].any() and history["observations"].grad[:, 3:].any()


@pytest.mark.parametrize("steps", [(K, K), (K, 1), (12, 11), (1, 5)])
def test_any_prompt_length(steps):
    history, prompt = (random_steps(2, length, seed=length) for length in steps)
    policy = tiny_policy()
    found = policy(history, prompt)
    assert found.shape == (2, steps[0], 2) and found.isfinite().all()
    assert not torch.isclose(found[0], policy(history, {n: v[[1, 0]] for n, v in prompt.items()})[0]).all()
