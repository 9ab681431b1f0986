"""State relabelling: from roll-outs to hyper-states, and the cache of what it makes.

A hyper-state is (s, μ, log σ²): the observation and the belief after the transitions so far. A roll-out of T transitions
has T + 1 of them, the last with the final observation (its flag cleared, as a policy would see it if it went on):

    row      0          1          ...  T
    state    s_0, q_0   s_1, q_1        s_T, q_T          row t + 1 follows row t; the memory is never reset between episodes
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from baselines.borel.vae import BeliefModel
from src.evaluation.results import is_numbers
from src.run.errors import UserError
from src.run.files import load_tensors, locked_file, read_json, save_tensors, write_json

VAE_DONE = "finished.json"
CHUNK = 512  # roll-outs per pass through the encoder
SWITCHES = ("discrete", "decode_reward", "decode_state", "decode_task", "predict_change", "learn_prior", "stochastic")
# of a model's configuration: what the sizes of its networks do not tell
FITS = {key: lambda value: isinstance(value, bool) for key in SWITCHES}
FITS |= {"reward_values": lambda value: is_numbers(value, 1) and len(value) == 2, "flagged": lambda value: value in (0, 1)}
FITS |= {"rew_pred_type": lambda value: value in ("bernoulli", "deterministic")}


def vae_config(problem, settings, rewards):
    """The configuration of a BeliefModel from BeliefSettings; rewards (...): examples, for what a Bernoulli decoder's 0 means.

    Raises UserError where the settings contradict each other.
    """
    given = ("task_embedding_size", "aggregator_hidden_size", "action_embedding_size", "state_embedding_size",
             "reward_embedding_size", "layers_before_aggregator", "layers_after_aggregator", "reward_decoder_layers",
             "rew_pred_type", "decode_state", "predict_change", "state_decoder_layers", "decode_task", "learn_prior")  # fmt: skip
    heads = 0
    if settings.multihead_for_reward:
        heads = getattr(problem.environment, "num_cells", 0)
        if not heads or settings.rew_pred_type != "bernoulli":
            raise UserError("--multihead-for-reward needs --rew-pred-type bernoulli and an environment with cells")
    reads = {"next_obs": settings.input_next_state, "obs": settings.input_prev_state, "actions": settings.input_action}
    if not heads and not any(reads.values()):
        raise UserError("the reward decoder reads nothing: set --input-next-state True")
    if not (settings.action_embedding_size or settings.state_embedding_size or settings.reward_embedding_size):
        raise UserError("the encoder reads nothing: set --reward-embedding-size or another embedding size above 0")
    if settings.input_action and not settings.action_embedding_size:
        raise UserError("--input-action True needs an --action-embedding-size above 0")
    if settings.predict_change and not settings.decode_state:
        raise UserError("--predict-change has no effect without --decode-state True")
    if settings.decode_state and not settings.action_embedding_size:
        raise UserError("--decode-state True needs an --action-embedding-size above 0")
    if not settings.state_embedding_size and (settings.decode_state or (settings.input_next_state and not heads)):
        raise UserError("decoders that read states need a --state-embedding-size above 0")
    missed = rewards[rewards != 1]
    return {
        "observation_size": problem.observation_size,
        "flagged": int(problem.episodes > 1),
        "action_size": problem.action_size,
        "discrete": problem.discrete,
        **{key: getattr(settings, key) for key in given},
        "num_heads": heads,
        "reward_decoder_inputs": [key for key, read in reads.items() if read],
        "decode_reward": not settings.disable_decoder,
        "stochastic": not settings.disable_stochasticity_in_latent,
        "task_size": sum(values[0].size for values in problem.tasks.values()),
        "reward_values": [float(missed.mean()) if missed.size else 0.0, 1.0],
    }


def save_belief_model(directory, model):
    """model.safetensors and model.json in the model's folder."""
    write_json(directory / "model.json", model.config)
    save_tensors(directory / "model.safetensors", model.state_dict())


def load_belief_model(directory, problem, command):
    """The frozen model of a finished run: encoder and all decoders. Raises UserError, naming `command` where it is missing."""
    directory = Path(directory)
    if not (directory / VAE_DONE).exists():
        others = sorted(path.parent.name for path in directory.parent.glob(f"*/{VAE_DONE}"))
        known = f" (finished ones: {', '.join(others)})" if others else ""
        raise UserError(f"no finished belief model in {directory}{known}; make it: {command}")
    sizes = "observation_size", "action_size", "discrete"
    config = read_json(directory / "model.json", *sizes)
    expected = problem.observation_size, problem.action_size, problem.discrete
    if tuple(config[key] for key in sizes) != expected:
        sizes = f"{config['observation_size']} observed numbers and {config['action_size']} of an action"
        raise UserError(f"{directory} holds a belief model of another problem: {sizes}, here {expected[0]} and {expected[1]}")
    if wrong := [key for key, fits in FITS.items() if not fits(config.get(key))]:
        told = f"{wrong[0]} is {str(config.get(wrong[0]))[:60]!r}"
        raise UserError(f"{directory / 'model.json'} is damaged ({told}): remove the folder, then {command}")
    try:
        model = BeliefModel(config)
        model.load_state_dict(load_tensors(directory / "model.safetensors"))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{directory}: model.json and model.safetensors disagree ({reason})") from None
    return model.requires_grad_(False).eval()


def model_fingerprint(model):
    """sha256 of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def beliefs_of(model, actions, next_obs, rewards, device="cpu"):
    """Beliefs (μ, log σ²) along roll-outs (R, T, ...) of numpy arrays: (R, T + 1, 2 L) tensor on the CPU."""
    parts = []
    for first in range(0, len(rewards), CHUNK):
        window = (torch.from_numpy(values[first : first + CHUNK]).to(device) for values in (actions, next_obs, rewards))
        parts.append(torch.cat(model.beliefs(*window), -1).cpu())
    return torch.cat(parts)


def hyper_states(model, problem, obs, actions, rewards, next_obs, device="cpu"):
    """Hyper-states of roll-outs (R, T, ...): (R, T + 1, d + 2 L) tensor."""
    last = problem.unflagged(next_obs[:, -1:])
    states = torch.from_numpy(np.concatenate([obs, last], 1))
    return torch.cat([states, beliefs_of(model, actions, next_obs, rewards, device)], -1)


@torch.inference_mode()
def belief_rewards(model, beliefs, transitions, samples, generator):
    """Expected reward of transitions under the belief *before* each: E over `samples` draws z ~ q_t of r̂(z; s, a, s').

    Args:
        beliefs: (R, T, 2 L). transitions: dict of tensors (R, T, ...): obs, actions (as networks read them), next_obs,
            and heads for a multi-head decoder.

    Returns:
        (R, T).
    """
    mean, log_var = beliefs.chunk(2, -1)
    total = 0
    for _ in range(samples):
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        total = total + model.predict_rewards(mean + noise * (0.5 * log_var).exp(), transitions)
    return total / samples


# ----------------------------------------------------------------------------------------------------------- the cache


class HyperCache:
    """Relabelled data on disk: one file per task, and cache.json that says what they were made from and which are done.

    Args:
        directory: the folder of all caches of a belief model; data made with other settings lie side by side in it.
        identity: JSON-able dict of all that the numbers depend on.
    """

    def __init__(self, directory, identity):
        self.identity = identity
        self.directory = Path(directory) / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        self.manifest = self.directory / "cache.json"

    def _path(self, task):
        return self.directory / f"task_{task:03d}.safetensors"

    @contextlib.contextmanager
    def locked(self):
        """Own the cache: whoever else wants to fill or read it waits, and finds it whole."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(self.directory.with_name(f".{self.directory.name}.lock")):
            yield self

    def done(self):
        """Tasks whose data are complete."""
        return set(read_json(self.manifest, "done")["done"]) if self.manifest.exists() else set()

    def clear(self):
        """Forget everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def write(self, task, arrays):
        """Store one task's arrays and note that it is done."""
        save_tensors(self._path(task), arrays)
        write_json(self.manifest, {"made_from": self.identity, "done": sorted({*self.done(), int(task)})})

    def read(self, tasks):
        """Arrays of all tasks, stacked: dict of (N, ...). Raises UserError where the cache is missing or partial."""
        if not set(map(int, tasks)) <= self.done():
            mend = "run once with --transform-data-bamdp True"
            raise UserError(f"no complete data of these settings in {self.directory.parent}: {mend}")
        loaded = [load_tensors(self._path(task)) for task in tasks]
        return {key: torch.stack([arrays[key] for arrays in loaded]) for key in loaded[0]}
