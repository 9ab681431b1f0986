"""Weights of the official Meta-DT code in our classes: other names, the same arithmetic (tests/models/test_official.py).

Official world models are files of torch.save with "context_encoder" and one decoder, "reward_decoder" or "state_decoder". They
are read with weights_only=True, which runs no code.
"""

import torch

from src.models.transformer import from_gpt2
from src.models.world_model import WorldModel
from src.run.errors import UserError
from src.run.files import load_foreign_state

POLICY = {  # official -> ours; the heads for states and returns get no gradient there and have no place here
    "embed_timestep": "history.timesteps", "embed_return": "history.returns", "state_encoder": "history.observations",
    "embed_state": "history.states", "embed_action": "history.actions", "prompt_embed_timestep": "prompt.timesteps",
    "prompt_embed_return": "prompt.returns", "prompt_embed_state": "prompt.states", "prompt_embed_action": "prompt.actions",
    "embed_ln": "embed_ln", "predict_action.0": "head",
}  # fmt: skip
LAYERS = {"linear1": "0", "linear2": "2", "linear3": "4"}  # of a decoder
ENCODER = {
    "state_encoder.0": "observation_embedding.0", "action_encoder.0": "action_embedding.0",
    "reward_encoder.0": "reward_embedding.0", "gru": "gru", "context_output": "to_context",
}  # fmt: skip


def policy_weights(official):
    """State dict of the official policy -> that of MetaDT, without its normaliser and action scale, which the official code keeps
    elsewhere. Raises KeyError for a name of another model."""
    blocks = {name.removeprefix("transformer."): value for name, value in official.items() if name.startswith("transformer.")}
    weights = {f"transformer.{name}": value for name, value in from_gpt2(blocks).items()}
    for name, value in official.items():
        module, parameter = name.rsplit(".", 1)
        if not name.startswith(("transformer.", "predict_state.", "predict_return.")):
            weights[f"{POLICY[module]}.{parameter}"] = value
    return weights


def load_official_world_model(path, horizon=4):
    """(WorldModel, head): a world model that the official code trained, frozen, on the CPU, and which head it has, "reward" or
    "state"; the other one holds no knowledge, its weights are 0. Inputs are as they are: the official code does not standardise.

    Args: horizon: h that it was trained with. Raises UserError when the file is no such model.
    """
    try:
        saved = load_foreign_state(path)
        (head,) = [name for name in ("reward", "state") if f"{name}_decoder" in saved]
        encoder, decoder = saved["context_encoder"], saved[f"{head}_decoder"]
        sizes = encoder["state_encoder.0.weight"].shape[1], encoder["action_encoder.0.weight"].shape[1]
        model = WorldModel(*sizes, horizon, len(encoder["state_encoder.0.bias"]))
        weights, other = _world_model_weights(encoder, decoder, head), {"reward": "state", "state": "reward"}[head]
        absent = tuple(f"{other}_{part}" for part in ("observation_embedding", "action_embedding", "decoder"))
        for name, parameter in model.named_parameters():
            if name not in weights and not name.startswith(absent):
                raise KeyError(name)
            torch.nn.init.zeros_(parameter)
        model.load_state_dict(model.state_dict() | weights)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many types for a damaged or foreign file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} is no world model of the official code ({reason}): give a context_models_*.pt") from None
    return model.eval().requires_grad_(False), head


def _world_model_weights(encoder, decoder, head):
    weights = {}
    for name, value in encoder.items():
        module, parameter = name.rsplit(".", 1)
        weights[f"{ENCODER[module]}.{parameter}"] = value
    action, state, reward = weights["gru.weight_ih_l0"].chunk(3, 1)  # the order in which the official encoder joins them
    weights["gru.weight_ih_l0"] = torch.cat([state, action, reward], 1)
    parts = {"state_encoder.0": f"{head}_observation_embedding.0", "action_encoder.0": f"{head}_action_embedding.0"}
    parts |= {theirs: f"{head}_decoder.{ours}" for theirs, ours in LAYERS.items()}
    for name, value in decoder.items():
        module, parameter = name.rsplit(".", 1)
        if module in parts:  # its state decoder has a reward encoder that it does not use
            weights[f"{parts[module]}.{parameter}"] = value
    return weights
