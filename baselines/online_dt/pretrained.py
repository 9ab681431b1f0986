"""Runs by name and folder, and the pre-trained model that fine-tuning and --eval_only go on from."""

import contextlib
import sys
from pathlib import Path

import torch

from src.evaluation.results import label
from src.run.config import next_command
from src.run.errors import UserError
from src.run.files import load_state, load_tensors, read_json

# flags that fine-tuning takes over from the pre-trained model where the command does not give them; FIXED it may not change
FIXED = ("model_type", "K", "embed_dim", "n_layer", "n_head", "remove_pos_embs", "stochastic", "stochastic_tanh", "return_scale",
         "mode", "pct_traj")  # fmt: skip
OPTIMISER = ("dropout", "optimizer", "learning_rate", "weight_decay", "warmup_steps", "ema_decay")
INHERITED = (*FIXED, *OPTIMISER, "eval_context", "eval_rtg", "online_rtg")
MISFITS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)  # what a state of other keys, types or shapes raises


def result_facts(args, online):
    """The facts of a run that its name and its result file's path are built from; the ablation or mode is what the flags make."""
    parts = []
    if args.model_type == "bc":
        parts.append("bc")
    if not args.stochastic:
        parts.append("deterministic")
    elif not args.stochastic_tanh:
        parts.append("no_tanh")
    if args.mode == "delayed":
        parts.append("delayed")
    if args.pct_traj < 1:
        parts.append(f"top{100 * args.pct_traj:g}")
    if online:
        ablations = {
            "no_entropy": args.stochastic and not args.use_entropy,
            "no_relabelling": not args.relabel,
            "same_rtg": args.online_rtg == args.eval_rtg,
        }
        parts += [name for name, holds in ablations.items() if holds]
    return {
        "env_type": args.env_type, "quality": args.dataset, "method": "online_dt", "recipe": args.recipe,
        "ablation": "-".join(parts) or "none", "regime": "finetuned" if online else "pretrained", "protocol": "strict",
        "validation": False, "fresh": False, "seed": args.seed,
    }  # fmt: skip


def run_folder(args, online):
    """Folder of a run."""
    facts = result_facts(args, online)
    return Path(args.output_dir, "saves", args.env_type, args.dataset, label(facts), facts["regime"], f"seed_{args.seed}")


def find_pretrained(args):
    """The folder of the model that --pretrained_model names, by default that of the pre-training command. Raises UserError."""
    default = run_folder(args, online=False)
    folder = Path(args.pretrained_model or default)
    if folder.suffix == ".pt":
        if folder.exists():
            raise UserError(f"{folder} is a pickle, which can run code when it is read; train a model with this command instead")
        print(f"{folder} was announced by the unofficial code but never published; using {default}", file=sys.stderr)
        folder = default
    if not (folder / "model.safetensors").exists() or not (folder / "state.pt").exists():
        raise UserError(f"no pre-trained model in {folder}; make it: {pretraining(args)}")
    return folder


def read_pretrained(args, folder):
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
        raise not_a_model(args, folder)
    if not finished:
        raise UserError(f"the run in {folder} is not finished; the command that started it continues it")
    return config, learner


def load_pretrained(args, learner):
    """Put the state of --pretrained_model into a fresh Learner. Raises UserError where it has other shapes."""
    folder = Path(args.pretrained_model)
    former, state = read_pretrained(args, folder)
    if args.init_temperature is not None or not former["use_entropy"]:
        state["temperature"] = learner.temperature.state_dict()
    with fitting(not_a_model(args, folder)):
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


def not_a_model(args, folder):
    return UserError(f"{folder} is not a model of this program; make it again: {pretraining(args, '--no-resume')}")


def pretraining(args, *words):
    """The command that makes the model, as far as the present one tells."""
    command = next_command(args, "-m baselines.online_dt", "--dataset", args.dataset, *words)
    return f"{command}, with the flags of the model"
