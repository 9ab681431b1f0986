"""Weights of the official layout in our classes: actions, loss and z are those of the equations (Meta-DT, section 4)."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import listing, random_episodes, run_stage

from src.evaluation.results import read_result
from src.models.meta_dt import MetaDT, action_loss
from src.models.meta_dt_agent import LEFT_OUT
from src.models.official import load_official_world_model, policy_weights
from src.models.world_model import episode_contexts, load_world_model
from src.run.errors import UserError

STATE, ACTION, WIDTH, Z, HIDDEN, STEPS = 3, 2, 24, 16, 128, 12


def draw(shapes, seed, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def official_policy(layers=2):
    shapes = {"embed_timestep.weight": (STEPS, WIDTH), "prompt_embed_timestep.weight": (STEPS, WIDTH)}
    for name, inputs in (("embed_return", 1), ("embed_action", ACTION), ("embed_state", 2 * Z), ("prompt_embed_return", 1),
                         ("prompt_embed_state", STATE), ("prompt_embed_action", ACTION)):  # fmt: skip
        shapes |= linear(name, inputs, WIDTH)
    shapes |= linear("state_encoder", STATE, Z) | linear("predict_state", WIDTH, STATE) | linear("predict_return", WIDTH, 1)
    shapes |= linear("predict_action.0", WIDTH, ACTION) | {"embed_ln.weight": (WIDTH,), "embed_ln.bias": (WIDTH,)}
    shapes |= {f"transformer.ln_f.{part}": (WIDTH,) for part in ("weight", "bias")} | {"transformer.wte.weight": (1, WIDTH)}
    for number in range(layers):
        block = f"transformer.h.{number}"
        for name, inputs, outputs in (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
                                      ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH)):  # fmt: skip
            shapes |= {f"{block}.{name}.weight": (inputs, outputs), f"{block}.{name}.bias": (outputs,)}  # GPT-2's are transposed
        shapes |= {f"{block}.{name}.{part}": (WIDTH,) for name in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes[f"{block}.attn.masked_bias"] = ()
    return draw(shapes, 0)


def official_world_model(head, state=STATE):
    encoder = linear("state_encoder.0", state, Z) | linear("action_encoder.0", ACTION, Z) | linear("reward_encoder.0", 1, Z)
    decoder = dict(encoder) if head == "state" else linear("state_encoder.0", state, Z) | linear("action_encoder.0", ACTION, Z)
    encoder |= {"gru.weight_ih_l0": (3 * HIDDEN, 3 * Z), "gru.weight_hh_l0": (3 * HIDDEN, HIDDEN)}
    encoder |= {"gru.bias_ih_l0": (3 * HIDDEN,), "gru.bias_hh_l0": (3 * HIDDEN,)} | linear("context_output", HIDDEN, Z)
    decoder |= linear("linear1", (4 if head == "reward" else 3) * Z, HIDDEN) | linear("linear2", HIDDEN, HIDDEN)
    decoder |= linear("linear3", HIDDEN, 1 if head == "reward" else state)
    return {"context_encoder": draw(encoder, 1, 0.1), f"{head}_decoder": draw(decoder, 2, 0.1)}


# --------------------------------------------------------------------------------------- the equations, by official names


def affine(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def tokens(w, prefix, steps, states):
    time = w[f"{prefix}embed_timestep.weight"][steps["timesteps"]]
    returns = affine(w, f"{prefix}embed_return", steps["returns_to_go"][..., None])
    parts = returns, affine(w, f"{prefix}embed_state", states), affine(w, f"{prefix}embed_action", steps["actions"])
    return torch.stack([part + time for part in parts], 2).flatten(1, 2)


def predict(w, history, prompt):
    """Actions of the history's steps: tokens with their time, a LayerNorm on the history alone, the prompt in front."""
    states = torch.cat([affine(w, "state_encoder", history["observations"]), history["contexts"]], -1)
    x, mask = norm(w, "embed_ln", tokens(w, "", history, states)), history["mask"]
    if prompt is not None:
        x = torch.cat([tokens(w, "prompt_", prompt, prompt["observations"]), x], 1)
        mask = torch.cat([prompt["mask"], mask], 1)
    length, mask = x.shape[1], mask.repeat_interleave(3, 1)
    unseen = -1e4 * ((~mask[:, None]) | torch.ones(length, length).triu(1).bool()).float()
    for number in range(2):
        block = f"transformer.h.{number}"

        def conv(name, value, block=block):
            return value @ w[f"{block}.{name}.weight"] + w[f"{block}.{name}.bias"]

        query, key, value = conv("attn.c_attn", norm(w, f"{block}.ln_1", x)).chunk(3, -1)
        weights = (query @ key.mT / math.sqrt(WIDTH) + unseen).softmax(-1)
        x = x + conv("attn.c_proj", weights @ value)
        x = x + conv("mlp.c_proj", conv("mlp.c_fc", norm(w, f"{block}.ln_2", x)).relu())
    x = norm(w, "transformer.ln_f", x).unflatten(1, (-1, 3))[:, -history["mask"].shape[1] :, 1]
    return affine(w, "predict_action.0", x).tanh()


def context(w, window):
    """z of one window of (s, a, r): embeddings joined as a, s, r; a GRU from the zero state, gate by gate."""
    names = ("action_encoder.0", "state_encoder.0", "reward_encoder.0")
    x = torch.cat([affine(w, name, window[name[0]]).relu() for name in names], -1)
    hidden = torch.zeros(HIDDEN)
    for row in x:
        gates = row @ w["gru.weight_ih_l0"].T + w["gru.bias_ih_l0"], hidden @ w["gru.weight_hh_l0"].T + w["gru.bias_hh_l0"]
        (reset, update, new), (reset_h, update_h, new_h) = (gate.chunk(3) for gate in gates)
        update = (update + update_h).sigmoid()
        hidden = (1 - update) * (new + (reset + reset_h).sigmoid() * new_h).tanh() + update * hidden
    return affine(w, "context_output", hidden)


# ----------------------------------------------------------------------------------------------------------------- tests


def steps(batch, length, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"returns_to_go": (), "observations": (STATE,), "contexts": (Z,), "actions": (ACTION,)}
    found = {name: torch.randn(batch, length, *size, generator=generator) for name, size in sizes.items()}
    found["timesteps"] = torch.randint(STEPS, (batch, length), generator=generator)
    found["mask"] = torch.arange(length) >= torch.tensor([[0], [2], [length - 1]])[:batch]
    return found


@pytest.mark.parametrize("prompted", [False, True])
def test_actions_and_loss_of_the_policy(prompted):
    weights = official_policy()
    policy = MetaDT(STATE, ACTION, STEPS, 10.0, WIDTH, 2, 1, 0.1).eval()
    missing = policy.load_state_dict(policy_weights(weights), strict=False)
    assert (
        set(missing.missing_keys) == {"observation_mean", "observation_std", "observation_bound", "action_scale"}
        and not missing.unexpected_keys
    )
    mean, std = torch.tensor([1.0, -2, 0]), torch.tensor([0.5, 3, 1])
    policy.set_normaliser(mean, std)
    history, prompt = steps(3, 6, 5), steps(3, 4, 6) if prompted else None
    inputs = [  # as the official data loader gives them
        part
        and part | {"returns_to_go": part["returns_to_go"] / 10, "observations": (part["observations"] - mean) / (std + 1e-6)}
        for part in (history, prompt)
    ]
    with torch.no_grad():
        found, expected = policy(history, prompt), predict(weights, *inputs)
        loss = action_loss(found, history["actions"], history["mask"], policy.action_scale)
    torch.testing.assert_close(found[history["mask"]], expected[history["mask"]], atol=1e-6, rtol=0)
    by_hand = (expected - history["actions"])[history["mask"]].square().mean()
    torch.testing.assert_close(loss, by_hand, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", ["reward", "state"])
def test_contexts_and_predictions_of_the_world_model(head, tmp_path):
    saved = official_world_model(head)
    torch.save(saved, tmp_path / "context_models_best.pt")
    model, found_head = load_official_world_model(tmp_path / "context_models_best.pt")
    assert found_head == head
    observations, actions, rewards = random_episodes(2, 7, STATE, ACTION)
    found = episode_contexts(model, observations, actions, rewards)
    for episode in range(2):
        padded = {  # zeros in front of the episode, as the official data loader has them
            letter: F.pad(values[episode, :7], (0, 0, 4, 0))
            for letter, values in (("s", observations), ("a", actions), ("r", rewards[..., None]))
        }
        for step in range(8):
            window = {letter: values[step : step + 4] for letter, values in padded.items()}
            torch.testing.assert_close(found[episode, step], context(saved["context_encoder"], window), atol=1e-6, rtol=1e-6)
    decoder, z = saved[f"{head}_decoder"], found[:, :7]
    parts = [affine(decoder, "state_encoder.0", observations[:, :7]).relu(), affine(decoder, "action_encoder.0", actions).relu()]
    if head == "reward":
        parts.append(affine(decoder, "state_encoder.0", observations[:, 1:]).relu())
    expected = torch.cat([*parts, z], -1)
    for layer in ("linear1", "linear2"):
        expected = affine(decoder, layer, expected).relu()
    expected = affine(decoder, "linear3", expected)
    predicted = model.decode(observations[:, :7], actions, observations[:, 1:], z)
    torch.testing.assert_close(predicted[head == "state"], expected, atol=1e-6, rtol=1e-6)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_official_world_model(tmp_path / "none.pt")
    torch.save({"context_encoder": {}, "reward_decoder": {}}, tmp_path / "other.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK")
    for name in ("other.pt", "torn.pt"):
        with pytest.raises(UserError, match="is no world model of the official code"):
            load_official_world_model(tmp_path / name)


@pytest.mark.long
@pytest.mark.parametrize("head", ["reward", "state"])
def test_stage_3_takes_an_official_world_model(head, tmp_path, capsys):
    file, flags = tmp_path / "context_models_best.pt", ("--decode", "own", "--import_from")
    torch.save(official_world_model(head, state=2), file)
    run_stage("get_datasets", tmp_path)
    run_stage("train_context", tmp_path, *flags, str(file))
    directory = tmp_path / "saves/point_robot/random/context+debug/seed_0"
    before = listing(directory)
    run_stage("train_context", tmp_path, *flags, str(file))  # a finished command changes nothing
    assert {name: content for name, content in listing(directory).items() if content != before[name]} == {}
    expected, _ = load_official_world_model(file)
    for which in ("best", "last"):
        kept = load_world_model(directory, which)[0].state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in expected.state_dict().items())
    result = read_result(tmp_path / "results/point_robot/random/context+debug/diagnostics/seed_0.json")
    assert result["training"]["gradient_steps"] == 0 and len(result["made_from"]["official_world_model_sha256"]) == 64
    assert {name.split("_")[0] for name in result["errors"]} == {head}  # the other head holds no knowledge
    assert f"{head}: validation error" in capsys.readouterr().out
    run_stage("train_meta_dt", tmp_path)
    agent = json.loads((tmp_path / "saves/point_robot/random/meta_dt+debug/few_shot/seed_0/agent.json").read_text())
    scales = dict(zip(("reward", "state"), agent["error_scale"], strict=True))
    assert scales.pop(head) < 1e6 and set(scales.values()) == {LEFT_OUT}


def test_stage_3_refuses_what_is_no_world_model_of_these_data(tmp_path, capsys):
    run_stage("get_datasets", tmp_path)
    file = tmp_path / "context_models_best.pt"
    torch.save(official_world_model("reward", state=3), file)
    capsys.readouterr()
    for flags, mend in (
        ([file], "reads observations of 3 numbers, the data have 2"), ([tmp_path / "none.pt"], "there is no such file"),
        ([file, "--decode", "relabelled"], "leave out the recipe"), ([file, "--context_horizon", "0"], "leave out the recipe"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            run_stage("train_context", tmp_path, "--decode", "own", "--import_from", *map(str, flags))
        said = capsys.readouterr().err
        assert mend in said and said.count("\n") == 1
    assert not (tmp_path / "saves").exists()
