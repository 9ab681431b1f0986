"""A trained Meta-DT as one artifact: written beside its weights by stage 4, loaded to act in a gymnasium environment.

agent = load_agent("saves/point_robot/medium/meta_dt+fast/zero_shot/seed_0")
"""

import dataclasses
import typing
from pathlib import Path

import torch
from gymnasium.spaces import Box

from src.data.origin import check_settings
from src.evaluation.agent import GymnasiumAgent
from src.evaluation.exploration import Exploration, exploring
from src.evaluation.saved import halved
from src.models.meta_dt import MetaDT, ModelSettings
from src.models.meta_dt_agent import Adaptation, MetaDTAgent
from src.models.world_model import WorldModel, WorldModelSettings, load_world_model
from src.run.command_line import next_command
from src.run.devices import autocast_dtype, find_device
from src.run.errors import UserError
from src.run.files import digest, load_state, load_tensors, read_json, save_tensors, write_json
from src.run.paths import context_directory

ARRAYS = ("low", "high", "known_contexts")  # of Acting: kept with the tensors


@dataclasses.dataclass(frozen=True)
class Acting:
    """All that a policy and its world model need beside their weights to act.

    model, adaptation, exploration: their settings. horizon: T. target: return that is asked for, or None. error_scale: two
    numbers, see `prediction_errors`. precision: see `autocast_dtype`. warmup: episodes before the one that counts. low, high:
    (d_a,) bounds of the actions. known_contexts: (C, 16), or None; see MetaDTAgent. Arrays are tensors on the CPU.
    """

    model: ModelSettings
    adaptation: Adaptation
    exploration: Exploration
    horizon: int
    target: float | None
    error_scale: tuple[float, float]
    precision: str
    seed: int
    warmup: int
    low: torch.Tensor
    high: torch.Tensor
    known_contexts: torch.Tensor | None = None

    @property
    def action_space(self):
        return Box(self.low.float().numpy(), self.high.float().numpy())

    def agent(self, policy, world_model, warmup=None):
        """The Agent (src/evaluation/agent.py) of a MetaDT and a WorldModel on one device."""
        warmup, device = self.warmup if warmup is None else warmup, policy.action_scale.device
        known = None if self.known_contexts is None else self.known_contexts.to(device)
        agent = MetaDTAgent(
            policy, world_model, self.model.history_length, self.model.prompt_length, self.target, self.adaptation,
            warmup=warmup, error_scale=self.error_scale, known_contexts=known,
            dtype=autocast_dtype(self.precision, device), seed=self.seed,
        )  # fmt: skip
        return exploring(agent, self.exploration, self.action_space, warmup, self.seed)

    def save(self, directory, world_model, half=False):
        """agent.safetensors, with the world model, and then agent.json, which vouches for it. half: see `halved`."""
        tensors = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        state = halved(world_model) if half else world_model.state_dict()
        tensors |= {f"world_model.{name}": value for name, value in state.items()}
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in ARRAYS}
        document |= {name: dataclasses.asdict(document[name]) for name in ("model", "adaptation", "exploration")}
        document["world_model"] = {
            "context_horizon": world_model.horizon, "embedding_size": world_model.gru.input_size // 3,
        }  # fmt: skip
        save_tensors(Path(directory) / "agent.safetensors", tensors)
        write_json(Path(directory) / "agent.json", document | {"sha256": digest(tensors)})


def load_agent(directory, device="cpu", warmup=None):
    """The trained policy of a folder of stage 4 as a GymnasiumAgent, with its world model and all that it adapts with.

    Args:
        directory: for example saves/point_robot/medium/meta_dt+fast/zero_shot/seed_0. device: as --device.
        warmup: episodes that explore and try before the one that counts (default: as it was measured; 0: zero-shot).
    `load_env` (src/run/config.py) makes the environment; the loop stands in docs/own_environment.md.
    Its `agent` is the Agent itself, for `evaluate`. Raises UserError where the folder holds no such policy, or a damaged one.
    """
    acting, policy, world_model = read_agent(directory, find_device(device))
    if acting.precision == "auto":  # matrices of one episode are so small that bfloat16 costs more than it gains
        acting = dataclasses.replace(acting, precision="float32")
    return GymnasiumAgent(acting.agent(policy, world_model, warmup), acting.action_space)


def read_agent(directory, device):
    """(Acting, MetaDT, WorldModel) of a folder on a torch.device. Raises UserError as `load_agent`."""
    directory = Path(directory)
    if not (directory / "agent.json").exists():
        raise UserError(f"{directory} is no folder of a policy of train_meta_dt.py: name one, for example saves/…/seed_0")
    document, tensors, weights = (
        read(directory / name)
        for read, name in ((read_json, "agent.json"), (load_tensors, "agent.safetensors"), (load_tensors, "model.safetensors"))
    )
    try:
        if digest(tensors) != document.pop("sha256"):
            raise ValueError
        prefix = "world_model."
        own = {name: tensors.pop(name) for name in list(tensors) if not name.startswith(prefix)}
        settings = WorldModelSettings(**document.pop("world_model"))
        kinds = typing.get_type_hints(Acting)
        document |= {name: kinds[name](**document[name]) for name in ("model", "adaptation", "exploration")}
        acting = Acting(**{**document, **own})
        asked = type(None) if acting.model.ignore_returns else (int, float)
        if not (isinstance(acting.target, asked) and isinstance(acting.warmup, int)):
            raise ValueError
        sizes = len(weights["observation_mean"]), len(acting.low)
        world_model = WorldModel.from_settings(*sizes, settings)
        world_model.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()})
        policy = MetaDT.from_settings(*sizes, acting.horizon, acting.model, acting.action_space)
        policy.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(
            f"{directory} holds no agent of train_meta_dt.py: give its command again, with --no-resume; a policy of another "
            "method is loaded by tools.models.from_pretrained"
        ) from None
    # the policy's parameters keep asking for gradients, as where its row was measured: products' last bits depend on it
    return acting, policy.to(device).eval(), world_model.to(device).eval().requires_grad_(False)


def open_world_model(run, directory=None):
    """The frozen world model of a run (RunSettings) on its device, and the settings of its training.

    directory: its folder, None for that of this environment, quality, recipe and seed. Raises UserError where it is missing,
    unfinished, or of another environment, quality or task split.
    """
    named, directory = directory, Path(directory) if directory else context_directory(run)
    if named and not (directory / "config.json").exists():
        raise UserError(f"no world model in {directory}: give --world_model its folder, saves/…/context…/seed_<s>")
    if not (directory / "best.safetensors").exists():
        validation = ["--validation"] if run.validation else []
        make = next_command(run, "train_context.py", "--data_quality", run.data_quality, *validation)
        raise UserError(f"no world model in {directory}; train it: {make}")
    if not (directory / "state.pt").exists():  # killed at its first checkpoint, which writes the weights first
        raise UserError(f"the world model in {directory} has no state.pt: give its train_context.py command again")
    progress = load_state(directory / "state.pt", "step", "total")
    if progress["step"] < progress["total"]:
        raise UserError(
            f"the world model in {directory} is at step {progress['step']} of {progress['total']}: run train_context.py again, "
            "the command that began it goes on"
        )
    model, config = load_world_model(directory)
    for key in ("env_type", "data_quality", "validation"):
        if config.get(key) != getattr(run, key):
            raise UserError(
                f"{directory} was trained with {key} {config.get(key)}, this command says {getattr(run, key)}: give the same "
                f"--{key}, or name another --world_model"
            )
    made, what = config.get("env", {}), f"the world model in {directory} was trained"
    again = "put the settings file right, or run train_context.py --no-resume again"
    check_settings(made, run.env, what, again)
    for key in ("train_tasks", *["validation_tasks"] * run.validation):  # none that is tested may have been trained on
        ours = list(getattr(run.env, key))
        if made.get(key, ours) != ours:
            raise UserError(f"{what} with {key} {made[key]}, not {ours}: {again}")
    return model.to(run.device), config
