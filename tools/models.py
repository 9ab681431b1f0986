"""Trained policies as folders that people load: export, measure again, push and pull.

    python -m tools.models measure trained/point_robot/replay/iql+compare
    python -m tools.models export saves/point_robot/medium/meta_dt+fast/zero_shot/seed_0 models/point_robot-medium
    python -m tools.models push models/point_robot-medium hf://me/meta-dt-point-robot
    python -m tools.models pull hf://me/meta-dt-point-robot models/point_robot-medium
    python -m tools.models torchscript models/point_robot-medium policy.pt --task 47
    python -m tools.models push datasets/point_robot/medium-v0 hf://datasets/me/point-robot-medium

In Python: `agent = from_pretrained("models/point_robot-medium")`, or "hf://me/meta-dt-point-robot"; see docs/large_runs.md.

A folder holds the weights as they were trained (model.safetensors, with the normaliser; agent.safetensors: the world model, and
what a method needs of its training data), config.json, results.json (what these very weights earned on the test tasks) and
README.md, the model card. `measure` plays the same episodes again, without any dataset, and says whether the returns are those of
results.json, and those of the policy's row under results/, digit by digit. `export --half` stores half precision: half the size,
returns of its own. Every method can be exported. push and pull take datasets, too.
hf:// needs a package: pip install huggingface_hub.
"""

import argparse
import contextlib
import dataclasses
import importlib
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from src.data import trajectories
from src.data.origin import check_settings
from src.evaluation.agent import GymnasiumAgent
from src.evaluation.evaluate import evaluate, live
from src.evaluation.results import label, read_result, result_path
from src.evaluation.saved import MISFITS, halved, read_saved, save_known
from src.models.load import read_agent
from src.models.torchscript import episode_module
from src.report import statistics
from src.run.config import known_env_types, load_env, num_known_tasks, num_tasks, read_env, read_yaml
from src.run.devices import autocast_dtype, find_device
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path, digest, load_tensors, read_json, save_tensors, write_json
from src.run.flags import Parser, natural
from src.run.provenance import provenance
from tools.hub import DATASETS, HUB, contents, copy, downloaded, upload
from tools.model_card import card
from tools.sweep import BASELINES

SCHEMA = 1
MODULES = {name: f"baselines.{name}" for name in BASELINES} | {  # with `restore`, see src/evaluation/saved.py
    "online_dt": "baselines.online_dt.training", "borel": "baselines.borel.saved", "borel-online": "baselines.borel.saved",
}  # fmt: skip
FILES = ("config.json", "agent.json", "agent.safetensors", "model.safetensors", "results.json", "README.md")  # of a folder
FACTS = ("method", "env_type", "quality", "recipe", "ablation", "privileges", "protocol", "validation", "seed", "made_from")
DATA_FILES = ("data/main_data.hdf5", "data/metadata.json", "README.md")  # of a dataset


# -------------------------------------------------------------------------------------------------------------- loading


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained policy. model: the module of model.safetensors. agent: function warm-up episodes -> Agent. save: function
    (folder, half) that writes the three files of the weights; half: see `halved`. evaluate: function as that of
    src/evaluation/evaluate.py, by which its rows are measured."""

    model: object
    agent: object
    action_space: object
    save: object
    evaluate: object = evaluate


def read_trained(directory, method, env, device, settings):
    """The Trained of a folder. settings: {name: value} of its training. Raises UserError."""
    directory = Path(directory)
    if method == "meta_dt":
        acting, policy, world_model = read_agent(directory, device)
        if acting.precision == "auto":  # what another processor would choose changes the digits
            chosen = autocast_dtype("auto", device) or torch.float32
            acting = dataclasses.replace(acting, precision=str(chosen).removeprefix("torch."))

        def save(folder, half):
            save_tensors(folder / "model.safetensors", halved(policy) if half else policy.state_dict())
            acting.save(folder, world_model, half)

        return Trained(policy, lambda warmup: acting.agent(policy, world_model, warmup), acting.action_space, save)
    if method not in MODULES:
        raise UserError(f"{directory} holds a policy of {method}, which cannot be loaded: the methods are {', '.join(MODULES)}")
    saved = read_saved(directory, env, device, settings)
    try:
        module = importlib.import_module(MODULES[method])
        model, agent = module.restore(saved)
    except MISFITS:
        raise UserError(f"{directory}: its weights do not fit its settings: export the policy again") from None

    def save(folder, half):
        save_tensors(folder / "model.safetensors", halved(model) if half else model.state_dict())
        save_known(folder, method, saved.known, saved.told)

    return Trained(model, agent, saved.space, save, getattr(module, "measured", evaluate))


def read_config(folder):
    """config.json of an exported folder. Raises UserError."""
    keys = ("schema", *FACTS, "task_ids", "episodes", "regimes", "weights", "rows", "settings", "model_sha256")
    config = read_json(
        Path(folder) / "config.json", *keys, mend="it is no exported policy: python -m tools.models export makes one"
    )
    if config["schema"] != SCHEMA:
        raise UserError(f"{folder} has schema {config['schema']}, this version reads {SCHEMA}: export the policy again")
    try:
        counts = [type(regime[key]) for regime in config["regimes"].values() for key in ("warmup", "later")]
        whole = set(counts) == {int} and isinstance(config["settings"]["env"], dict)
        whole &= all(isinstance(config[key], str) for key in ("method", "env_type", "quality"))
        whole &= bool(config["task_ids"]) and all(map(_is_count, [*config["task_ids"], config["seed"], config["episodes"] - 1]))
        whole &= set(map(type, config["rows"].values())) <= {str} and config["rows"].keys() >= config["regimes"].keys()
        told = config["provenance"]
        whole &= all(isinstance(told[key], kind) for key, kind in (("hardware", str), ("versions", dict)))
    except (AttributeError, LookupError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{folder}/config.json was altered: export or pull the policy again")
    if digest(load_tensors(Path(folder) / "model.safetensors")) != config["model_sha256"]:
        raise UserError(f"{folder}/model.safetensors is of another policy, or was altered: export or pull the policy again")
    return config


def find_env(config, settings_file=None):
    """EnvConfig of an exported policy, of configs/ or of one's own settings file. Raises UserError where it is another one."""
    if settings_file:
        env = read_env(Path(settings_file), read_yaml(settings_file))
    elif config["env_type"] in known_env_types():
        env = load_env(config["env_type"])
    else:
        raise UserError(f"this policy is of {config['env_type']}, which configs/ does not have: give its settings file, --config "
                        "(in Python: settings_file)")  # fmt: skip
    told = config["settings"].get("env", {})
    if (env.env_type, env.env_name, env.max_episode_steps) != (
        config["env_type"], told.get("env_name"), told.get("max_episode_steps"),
    ):  # fmt: skip
        raise UserError(f"this policy is of another {config['env_type']} than the settings file here")
    if max(config.get("task_ids", [0])) >= num_known_tasks(env, env.make(discrete=True)):
        raise UserError(f"this policy was measured on task {max(config['task_ids'])}, which {env.env_type} does not have")
    check_settings(told, env, "this policy was trained", "give its own settings file, --config")
    return env


def from_pretrained(source, warmup=None, device="cpu", settings_file=None):
    """The policy of an exported folder, or of hf://name/model, as a GymnasiumAgent (src/evaluation/agent.py).

    Args:
        warmup: episodes that explore and try before the one that counts (default: as its table row; 0: zero-shot).
        device: as --device. settings_file: of an environment of one's own.
    Raises UserError where it is no such folder, or a damaged one.
    """
    with folder_of(source) as folder:
        config = read_config(folder)
        trained = read_trained(folder, config["method"], find_env(config, settings_file), find_device(device), config["settings"])
    warmup = max(regime["warmup"] for regime in config["regimes"].values()) if warmup is None else warmup
    return GymnasiumAgent(trained.agent(warmup), trained.action_space)


@contextlib.contextmanager
def folder_of(source):
    """The folder of a policy; what hf:// names is there for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as temporary:
        yield pull(source, Path(temporary, "policy")) if str(source).startswith(HUB) else Path(source)


def describe(folder):
    """{"method", "env_type", "seed", "warmup", "settings"} of an exported policy, or of a run's folder. Raises UserError."""
    mend = "name a folder of an exported policy, or of a run below saves/"
    if "schema" in read_json(Path(folder) / "config.json", "env_type", mend=mend):
        config = read_config(folder)
        return config | {"warmup": max(regime["warmup"] for regime in config["regimes"].values())}
    settings = read_settings(folder)
    mend = "give the run's command with --eval_only: it keeps what acting needs"
    agent = read_json(Path(folder) / "agent.json", "sha256", mend=mend)
    found = {"method": agent.get("method", "meta_dt"), "warmup": agent.get("warmup", settings.get("warmup_episodes", 0))}
    if not (isinstance(found["method"], str) and _is_count(found["warmup"])):
        raise UserError(f"{folder}/agent.json was altered: {mend}")
    return {"env_type": settings["env_type"], "seed": settings["seed"], **found, "settings": settings}


def read_settings(directory):
    """config.json of a run's folder. Raises UserError."""
    settings = read_json(Path(directory) / "config.json", "env", "env_type", "seed", mend="it is no run's folder")
    env, env_type, seed = (settings[key] for key in ("env", "env_type", "seed"))
    if not (isinstance(env, dict) and isinstance(env_type, str) and _is_count(seed)):
        raise UserError(f"{directory}/config.json was altered: give the run's command again, with --no-resume")
    return settings


def _is_count(value):
    return type(value) is int and value >= 0


# ------------------------------------------------------------------------------------------------------------ exporting


def save_pretrained(directory, folder, settings_file=None, half=False):
    """Export the finished run in `directory` (below saves/) to a new folder: weights, settings, what they earn, model card.

    half: the weights in half precision. As they were trained, they earn what the run's result files say, digit by digit.

    Raises UserError where the run has no results, or `folder` holds something else. Returns the folder.
    """
    directory, folder = Path(directory), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(path.name not in FILES for path in contents(folder))):
        raise UserError(f"{folder} holds other files: name a new folder")
    results, paths = find_results(directory)
    first = next(iter(results.values()))
    settings = read_settings(directory)
    regimes = {
        name: {"warmup": _count(result, "warmup_returns"), "later": _count(result, "later_returns")}
        for name, result in results.items()
    }
    episodes = len(first["returns"][0])
    if "bamdp" in regimes:  # returns of K episodes in sequence, each the mean of all roll-outs
        regimes["bamdp"]["warmup"], episodes = episodes - 1, settings["eval_rollouts"]
    if (folder / "config.json").exists():
        there = read_json(folder / "config.json")
        if not isinstance(there, dict) or any(there.get(key) != first[key] for key in FACTS[:5]):
            raise UserError(f"{folder} holds another policy: name a new folder")
    config = {"schema": SCHEMA, **{key: first[key] for key in FACTS}, "task_ids": first["task_ids"]}
    config |= {
        "episodes": episodes, "regimes": regimes, "weights": "float16" if half else "float32",
        "rows": {name: result_path("", result, "").as_posix() for name, result in results.items()},  # below results/
        "training": first["training"], "settings": settings, **({"variant": first["variant"]} if first["variant"] else {}),
    }  # fmt: skip
    env = find_env(config, settings_file)
    trained = read_trained(directory, config["method"], env, find_device("cpu"), settings)
    told = provenance()  # of the checkout as it is before this writes into it
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)  # of other weights; without it the folder is no whole policy
    trained.save(folder, half)
    config["model_sha256"] = digest(load_tensors(folder / "model.safetensors"))
    write_json(folder / "config.json", config | {"provenance": told})
    measured = play(folder, config, env)
    write_json(folder / "results.json", measured)
    rows = {name: table_row(path) | {"same": is_row(measured[name], path)} for name, path in paths.items()}
    for name, row in rows.items():
        print(f"{name}: {'the' if row['same'] else 'not the'} returns of {paths[name]}")
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(card(config, env, measured, rows), encoding="utf-8")
    return folder


def find_results(directory):
    """({regime: result}, {regime: path}) that a run's folder names, of the strict protocol. Raises UserError."""
    mend = "name the folder seed_<s> of a policy, or give the run's command with --eval_only (BOReL: --no-resume), which notes "
    mend += "what it measured"
    named = read_json(directory / "results.json", mend=mend)
    root = next((parent.parent for parent in directory.resolve().parents if parent.name == "saves"), None)
    if root is None or not isinstance(named, dict):
        raise UserError(f"{directory} is no run's folder below saves/: name one, for example saves/…/seed_0")
    results, paths = {}, {}
    for name in named.values():
        path = root / str(name)
        result = read_result(path)
        if result["protocol"] == "strict":
            results[result["regime"]], paths[result["regime"]] = result, path
    if not results:
        raise UserError(f"{directory} has no result of the strict protocol: give its command with --eval_only")
    return results, paths


def _count(result, key):
    """How many episodes a result has under `key`."""
    return len(result[key][0][0]) if key in result else 0


def table_row(path):
    """{"mean", "low", "high", "seeds"}: mean return and its 95 % interval over the seeds beside a result file."""
    results = [read_result(file) for file in sorted(path.parent.glob("seed_*.json"))]
    same = [result for result in results if result["task_ids"] == results[0]["task_ids"]]
    scores = statistics.score_matrix([result["returns"] for result in same])
    low, high = statistics.bootstrap_interval(statistics.mean, scores) if len(scores) > 1 else (None, None)
    return {"mean": float(statistics.mean(scores)), "low": low, "high": high, "seeds": len(scores)}


# ------------------------------------------------------------------------------------------------------------ measuring


def play(folder, config, env, later=True):
    """{regime: what `Trained.evaluate` returns} of the weights in the folder: the episodes of its table row. later: also those
    that follow the evaluated one, which no row shows."""
    trained = read_trained(folder, config["method"], env, find_device("cpu"), config["settings"])
    return {
        name: trained.evaluate(
            trained.agent(regime["warmup"]), env, config["task_ids"], config["episodes"], regime["warmup"], config["seed"],
            regime["later"] * later,
        )
        for name, regime in config["regimes"].items()
    }  # fmt: skip


def measure(folder, settings_file=None, results="results"):
    """Play the episodes of an exported policy's row again and print what they earn; returns whether all returns are as recorded.

    results: the folder of the result files: where the policy's row lies there, it is compared, too.
    """
    config = read_config(folder)
    env = find_env(config, settings_file)
    recorded, same = read_json(Path(folder) / "results.json", *config["regimes"]), True
    for name, result in play(folder, config, env, later=False).items():
        found = np.array(result["returns"])
        try:
            equal = is_same(result, recorded[name])
            told = np.array(recorded[name]["returns"], float).reshape(found.shape)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise UserError(f"{folder}/results.json was altered: export or pull the policy again") from None
        same &= equal
        beside = (
            "every return as recorded"
            if equal
            else f"recorded {told.mean():.6g}, largest difference {np.abs(found - told).max():.3g}"
        )
        print(f"{label(config)} on {config['env_type']}, {name}: return {found.mean():.6g}; {beside}")
        row = Path(results, config["rows"][name])
        if row.is_file():
            print(f"  {row}: {'the same' if is_row(result, row) else 'other'} returns")
    return same


def explain(told):
    """Say why returns may differ from those that were measured as `told` (a provenance). Raises UserError where nothing does."""
    here = provenance()
    if told["hardware"] == here["hardware"] and told["versions"] == here["versions"]:
        raise UserError("this machine and these versions made the recorded returns, and now make others: pull the policy again")
    others = [f"{name} {version}" for name, version in told["versions"].items() if here["versions"].get(name) != version]
    print(
        f"recorded on {', '.join([told['hardware'], *others])}; this is {here['hardware']}: the last bits of sums differ between "
        "these, and with them the returns",
        file=sys.stderr,
    )


def is_row(result, path):
    """Whether `evaluate`'s result is what the result file says, to the last digit."""
    return is_same(result, read_result(path))


def is_same(result, recorded):
    """Whether all that was measured again is as recorded: of every episode the return and what goes with it."""
    return all(recorded.get(key) == values for key, values in result.items())


def save_torchscript(folder, file, task=None, warmup=None, settings_file=None):
    """A Meta-DT of a folder, adapted to a task by warm-up episodes of its own, as one TorchScript file; see `episode_module`.

    Args: folder: exported, or a run's. task: default the first test task. warmup: their number, default as it was measured.
    Raises UserError; returns the file.
    """
    if Path(file).suffix != ".pt":
        raise UserError(f"{file}: give the file a name that ends in .pt")
    told = describe(folder)
    env = find_env(told, settings_file)
    trained = read_trained(folder, told["method"], env, find_device("cpu"), told["settings"])
    task = env.test_tasks[0] if task is None else task
    known = num_tasks(env.make(discrete=True))
    if task >= known:
        raise UserError(f"--task {task} does not exist: {env.env_type} has tasks 0 to {known - 1}")
    warmup = told["warmup"] if warmup is None else warmup
    agent = trained.agent(warmup)
    getattr(agent, "agent", agent).dtype = None  # of an exploring agent its own; the module computes in float32
    agent.adapt([episode for _, _, episode in live(agent, env, [task], 1, warmup, told["seed"])])
    module = episode_module(agent, trained.action_space)
    with atomic_path(file) as temporary:
        module.save(str(temporary))
    return file


# ------------------------------------------------------------------------------------------------------- push and pull


def push(folder, target):
    """Copy an exported policy, or a dataset, to a folder or to the hub: hf://name/model, hf://datasets/name/dataset.

    Raises UserError where it is not whole; returns the target.
    """
    if not target.startswith(HUB) and re.match(r"[a-z][a-z0-9+.-]*:/", target):
        raise UserError(f"{target}: give hf://name/model or hf://datasets/name/dataset, or a folder")
    dataset = (Path(folder) / DATA_FILES[0]).exists()
    if target.startswith(HUB) and dataset != target.startswith(DATASETS):
        raise UserError(f"{folder} is {'a dataset' if dataset else 'no dataset'}: {DATASETS}name/dataset is for datasets")
    (check_dataset if dataset else check)(folder)
    files = DATA_FILES if dataset else FILES
    if target.startswith(HUB):
        upload(folder, target, files)
        return target
    return copy(folder, target, files)


def pull(source, folder):
    """Copy an exported policy, or a dataset, from a folder or from the hub. Raises UserError; returns the folder.

    A dataset lies as its names say, datasets/<env_type>/<quality>-v0: there the scripts find it.
    """
    if not str(source).startswith(HUB):
        return push(source, str(folder))
    dataset = str(source).startswith(DATASETS)
    files = DATA_FILES if dataset else FILES
    with downloaded(source, files) as found:
        name = check_dataset(found) if dataset else check(found)
        if dataset and "/".join(Path(folder).parts[-2:]) != name:
            raise UserError(f"{source} holds {name}: pull it to datasets/{name}, where the scripts look for it")
        return copy(found, folder, files)


def check(folder):
    """Whether a folder holds a whole policy that loads. Raises UserError."""
    missing = [name for name in FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no exported policy: it lacks {missing[0]}; python -m tools.models export makes one")
    results = read_json(Path(folder) / "results.json", *read_config(folder)["regimes"])
    if not all(isinstance(result, dict) and "returns" in result for result in results.values()):
        raise UserError(f"{folder}/results.json was altered: export or pull the policy again")
    load_tensors(Path(folder) / "model.safetensors")
    told = read_json(Path(folder) / "agent.json", "sha256")["sha256"]
    if digest(load_tensors(Path(folder) / "agent.safetensors")) != told:
        raise UserError(f"{folder}/agent.safetensors was altered: export or pull the policy again")


def check_dataset(folder):
    """The name, <env_type>/<quality>-v0, of the dataset in a folder, every byte verified. Raises UserError."""
    missing = [name for name in DATA_FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no dataset of get_datasets.py: it lacks {missing[0]}")
    metadata = trajectories.read(Path(folder) / DATA_FILES[0], "python get_datasets.py").metadata
    return f"{metadata.get('env_type')}/{metadata.get('quality')}-v0"


@main_guard
def main(argv=None):
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, words in (
        ("export", ("run", "folder")), ("measure", ("folder",)), ("push", ("folder", "target")), ("pull", ("source", "folder")),
        ("torchscript", ("folder", "file")),
    ):  # fmt: skip
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word)
        if name in ("export", "measure", "torchscript"):
            command.add_argument("--config", help="settings file of an environment of your own")
        if name == "export":
            command.add_argument("--half", action="boolean", default=False, help="store the weights in half precision")
        if name == "torchscript":
            command.add_argument("--task", type=natural, help="task of the warm-up episodes (default: the first test task)")
            command.add_argument("--warmup_episodes", type=natural, help="their number (default: as it was measured)")
        if name == "measure":
            command.add_argument("--results", default="results", help="folder of the result files, to compare with its row")
    args = parser.parse_args(argv)
    if args.command == "export":
        folder = save_pretrained(args.run, args.folder, args.config, args.half)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        own = f" --config {args.config}" if args.config else ""
        print(f"{folder}: {size:.1f} MB; next: python -m tools.models measure {folder}{own}")
    elif args.command == "measure":
        if not measure(args.folder, args.config, args.results):
            explain(read_config(args.folder)["provenance"])
    elif args.command == "torchscript":
        print(save_torchscript(args.folder, args.file, args.task, args.warmup_episodes, args.config))
    else:
        where = push(args.folder, args.target) if args.command == "push" else pull(args.source, args.folder)
        print(where)


if __name__ == "__main__":
    main()
