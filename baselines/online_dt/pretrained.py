"""Runs by name and folder, and the pre-trained model that fine-tuning and --eval_only go on from."""

import contextlib
import sys
from pathlib import Path

import torch

from src.evaluation.results import label
from src.evaluation.saved import MISFITS
from src.run.command_line import next_command
from src.run.errors import UserError
from src.run.files import load_state, load_tensors, read_json

# flags that fine-tuning takes over from the pre-trained model where the command does not give them; FIXED it may not change
FIXED = ("model_type", "K", "embed_dim", "n_layer", "n_head", "remove_pos_embs", "stochastic", "stochastic_tanh", "return_scale",
         "mode", "pct_traj")  # fmt: skip
OPTIMISER = ("dropout", "optimizer", "learning_rate", "weight_decay", "warmup_steps", "ema_decay")
INHERITED = (*FIXED, *OPTIMISER, "eval_context", "eval_rtg", "online_rtg")


def result_facts(settings, online):
    """The facts of a run (Settings) that its name and its result file's path are built from; the ablation or mode is what the
    flags make."""
    run, data, model, parts = settings.run, settings.data, settings.model, []
    if model.model_type == "bc":
        parts.append("bc")
    if not model.stochastic:
        parts.append("deterministic")
    elif not model.stochastic_tanh:
        parts.append("no_tanh")
    if data.mode == "delayed":
        parts.append("delayed")
    if data.pct_traj < 1:
        parts.append(f"top{100 * data.pct_traj:g}")
    if online:
        ablations = {
            "no_entropy": model.stochastic and not settings.entropy.use_entropy,
            "no_relabelling": not settings.online.relabel,
            "same_rtg": settings.online.online_rtg == settings.evaluation.eval_rtg,
        }
        parts += [name for name, holds in ablations.items() if holds]
    return {
        "env_type": run.env_type, "quality": data.dataset, "method": "online_dt", "recipe": run.recipe,
        "ablation": "-".join(parts) or "none", "regime": "finetuned" if online else "pretrained", "protocol": "strict",
        "validation": False, "fresh": False, "seed": run.seed,
    }  # fmt: skip


def run_folder(settings, online):
    """Folder of a run."""
    facts = result_facts(settings, online)
    where = Path(settings.run.output_dir, "saves", facts["env_type"], facts["quality"])
    return where / label(facts) / facts["regime"] / f"seed_{facts['seed']}"


def find_pretrained(settings):
    """The folder of the model that --pretrained_model names, by default that of the pre-training command. Raises UserError."""
    default = run_folder(settings, online=False)
    folder = Path(settings.online.pretrained_model or default)
    if folder.suffix == ".pt":
        if folder.exists():
            raise UserError(f"{folder} is a pickle, which can run code when it is read; train a model with this command instead")
        print(f"{folder} was announced by the unofficial code but never published; using {default}", file=sys.stderr)
        folder = default
    if not (folder / "model.safetensors").exists() or not (folder / "state.pt").exists():
        raise UserError(f"no pre-trained model in {folder}; make it: {pretraining(settings.run)}")
    return folder


def read_pretrained(run, folder):
    """The settings and the learner's state of a finished run. Raises UserError where the files are not whole, or not its own."""
    config, weights = read_json(folder / "config.json"), load_tensors(folder / "model.safetensors")
    try:
        state = load_state(folder / "state.pt")
        finished, learner = state["step"] >= state["total"], state["learner"]
        whole = config.keys() >= {"env_type", "dataset", "use_entropy", "target_entropy", "use_action_means", *INHERITED}
        if finished:  # a run that was stopped between two files is mended by going on
            whole &= weights.keys() == learner["average"].keys()
            whole = whole and all(torch.equal(value, learner["average"][name]) for name, value in weights.items())
    except (UserError, *MISFITS):
        finished, whole = True, False
    if not whole:
        raise not_a_model(run, folder)
    if not finished:
        raise UserError(f"the run in {folder} is not finished; the command that started it continues it")
    return config, learner


def load_pretrained(run, folder, learner):
    """Put the state of the model in `folder` into a fresh Learner. Raises UserError where it has other shapes."""
    former, state = read_pretrained(run, folder)
    if learner.entropy.init_temperature is not None or not former["use_entropy"]:
        state["temperature"] = learner.temperature.state_dict()
    with fitting(not_a_model(run, folder)):
        learner.load_state_dict(state)


@contextlib.contextmanager
def fitting(error):
    """Raises `error` where what is put into place has other keys, types or shapes."""
    try:
        yield
    except torch.OutOfMemoryError:  # on a GPU, and no fault of the file
        raise
    except MISFITS:
        raise error from None


def not_a_model(run, folder):
    return UserError(f"{folder} is not a model of this program; make it again: {pretraining(run, '--no-resume')}")


def pretraining(run, *words):
    """The command that makes the model, as far as the present one tells."""
    command = next_command(run, "-m baselines.online_dt", "--dataset", run.data_quality, *words)
    return f"{command}, with the flags of the model"
