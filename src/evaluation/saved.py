"""A trained policy off its training: what its folder says, and how it becomes an Agent again without any data.

A run's folder holds config.json (the resolved settings), model.safetensors (the weights, with the normaliser), agent.safetensors
(what acting needs of the training data beside them) and agent.json, which vouches for the latter. A module of a compared method
has

    restore(saved)      # Saved -> (module with the weights, function warmup -> Agent)
    measured(agent, env, task_ids, episodes, warmup, seed, later)     # where its rows are measured otherwise than by `evaluate`
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from gymnasium.spaces import Discrete

from src.run.errors import UserError
from src.run.files import digest, load_tensors, read_json, save_tensors, write_json
from src.run.settings import pick

MISFITS = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)  # what foreign settings or weights raise


@dataclasses.dataclass(frozen=True)
class Saved:
    """One trained policy. env: EnvConfig. settings: {name: value} of its training. weights, known: {name: tensor}.

    told: agent.json. Attributes: space, of the actions. sizes: d_s, and d_a or the number of actions of a Discrete space.
    """

    env: object
    settings: dict
    weights: dict
    known: dict
    told: dict
    device: object

    def __post_init__(self):
        environment = self.env.make(discrete=True)
        space = environment.action_space
        actions = int(space.n) if isinstance(space, Discrete) else space.shape[0]
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "sizes", (environment.observation_space.shape[0], actions))

    @property
    def horizon(self):
        """T."""
        return self.env.max_episode_steps

    @property
    def seed(self):
        return int(self.settings["seed"])

    def pick(self, *kinds):
        """Settings objects of these classes."""
        given = argparse.Namespace(**self.settings)
        chosen = [pick(kind, given) for kind in kinds]
        return chosen[0] if len(chosen) == 1 else chosen

    def filled(self, module):
        """`module` with the weights on the device. Its parameters keep asking for gradients, as where its row was measured: the
        last bits of a product depend on it."""
        module.load_state_dict(self.weights)  # half precision becomes what the module has
        return module.to(self.device).eval()

    def tensor(self, name):
        """One of the known tensors, on the device."""
        return self.known[name].to(self.device)


def save_known(directory, method, known, told=None):
    """agent.safetensors and agent.json of a compared method. known: {name: tensor}, which may be empty. told: {name: value}, what
    else agent.json is to say: settings that config.json does not hold."""
    save_tensors(Path(directory) / "agent.safetensors", known)
    write_json(Path(directory) / "agent.json", {**(told or {}), "method": method, "sha256": digest(known)})


def read_saved(directory, env, device, settings):
    """The Saved of a compared method's folder. settings: {name: value} of its training. Raises UserError where it is damaged."""
    directory = Path(directory)
    document = read_json(directory / "agent.json", "sha256")
    known, weights = (load_tensors(directory / f"{name}.safetensors") for name in ("agent", "model"))
    if digest(known) != document["sha256"]:
        raise UserError(f"{directory}: agent.json and agent.safetensors are not of one policy: export it again")
    return Saved(env, settings, weights, known, document, device)


def halved(module):
    """The state of a module with its parameters in half precision, where they fit; buffers stay as they are."""
    names = {name for name, _ in module.named_parameters()}
    limit = torch.finfo(torch.float16).max
    return {
        name: value.half() if name in names and value.abs().max() < limit else value
        for name, value in module.state_dict().items()
    }
