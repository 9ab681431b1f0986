"""The published commands of IDAQ, behind `python -m baselines.idaq` in the place of `python`:

    run_ml1.sh | run_point.sh | run_cheetah.sh
    launch_experiment_cpearl.py CONFIG.json DATA_DIR --use_brac 1 --is_onlineadapt_max 1 ...      (or without the script's name)
    policy_train.py CONFIG.json, data_collection_ml1.py CONFIG.json

CONFIG.json is the original's, or one of configs/idaq/ (baselines/idaq_config.py). What it says becomes our flags. A flag of the
command counts more, and so does a recipe; a flag that is not given changes nothing (the original writes all its flags' defaults
over the file); flags of ours may follow. DATA_DIR holds files of the original (baselines/idaq_data.py); without it the dataset
`expert` is learned from.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from baselines.idaq_config import DEFAULTS, OURS, SWITCHES, family, find_config, read_config, translated
from baselines.idaq_data import convert
from src.data.qualities import data_name
from src.run.command_line import recipe_keys
from src.run.config import load_env
from src.run.errors import UserError
from src.run.flags import Parser, natural, positive_int, real
from src.run.provenance import ROOT

PRESETS = {  # script: its configuration and data
    "run_ml1.sh": ("cpearl-ml1.json", "./data/soccer-v2"),
    "run_point.sh": ("cpearl-sparse-point-robot.json", "./data/sparse-point-robot"),
    "run_cheetah.sh": ("cpearl-cheetah-vel.json", "./data/cheetah-vel"),
}


def our_words(argv, check=None):
    """The words of our own command for those of a published one; our own stay as they are. None where it is done: it made data.

    argv: words, or None for those of this process. check: called with our words before any data are made. Raises UserError where
    a word is neither, or contradicts another.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        return argv
    name, rest = Path(argv[0]).name, argv[1:]
    if name in PRESETS:
        config, data = PRESETS[name]
        return launched(find_config(config), data, rest, check)
    if name in ("policy_train.py", "data_collection_ml1.py"):
        return collected(name, rest)
    if name != "launch_experiment_cpearl.py":
        if Path(name).suffix != ".json":
            known = ["CONFIG.json DATA_DIR", "launch_experiment_cpearl.py", *PRESETS, "policy_train.py", "data_collection_ml1.py"]
            raise UserError(f"{argv[0]} is neither a flag nor a published command: {', '.join(known)}")
        rest = argv
    if len(rest) < 2 or any(word.startswith("-") for word in rest[:2]):
        raise UserError("give CONFIG.json and DATA_DIR first, for example configs/idaq/cpearl-ml1.json data/soccer-v2")
    return launched(find_config(rest[0]), rest[1], rest[2:], check)


def flags_of(argv):
    """({published flag: number}, further words, which are ours)."""
    parser = Parser(add_help=False)
    for name in (*SWITCHES[:-1], "is_sparse_reward"):
        parser.add_argument(f"--{name}", type=natural, choices=(0, 1))
    for name, kind in {"gpu": natural, "r_thres": real, "num_exp_traj_eval": positive_int, "num_ensemble": positive_int}.items():
        parser.add_argument(f"--{name}", type=kind)
    given, rest = parser.parse_known_args(argv)
    return {name: value for name, value in vars(given).items() if value is not None}, rest


def launched(path, data, argv, check=None):
    """Our words for launch_experiment_cpearl.py. check: see `our_words`."""
    document, said = read_config(path)
    given, rest = flags_of(argv)
    gpu = given.pop("gpu", None)
    if "is_sparse_reward" in given:
        given["sparse_rewards"] = given.pop("is_sparse_reward")
    said = DEFAULTS | said | given
    if said.get("is_true_sparse_rewards") and not said["sparse_rewards"]:
        raise UserError("--is_true_sparse_rewards 1 needs --is_sparse_reward 1")
    env = load_env(family(document["env_name"], bool(said["sparse_rewards"])))
    name = check_fit(document, said, env, data)
    settings = translated(said, env)
    if gpu is not None:
        settings["device"] = f"cuda:{gpu}" if gpu < torch.cuda.device_count() else "cpu"
    ours = {word.split("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")}
    twice = ours & {"env_type", "env_name", "config", "data_quality", "data_type"} | ours & {OURS.get(key) for key in given}
    if twice:
        raise UserError(f"--{min(twice)} is said by the published words already: leave one of them out")
    first = Parser(add_help=False)
    first.add_argument("--output_dir", default=".")
    first.add_argument("--recipe", default="paper")
    own = first.parse_known_args(rest)[0]
    ours |= recipe_keys(env.env_type, own.recipe, "baselines.idaq")
    there = Path(data).exists()
    name = name if there else "expert"
    flags = [word for key, value in settings.items() if key not in ours for word in (f"--{key}", str(value))]
    words = ["--env_type", env.env_type, "--data_quality", name, *flags, *rest]
    if check:
        check(words)
    if there:
        convert(data, env, name, own.output_dir, *(int(said[key]) if key in said else None for key in ("n_trj", "train_epoch")))
    else:
        print(f"note: there is no {data}: the dataset expert of get_datasets.py is learned from", file=sys.stderr)
    print(f"this is: python -m baselines.idaq {shlex.join(words)}", file=sys.stderr)
    return words


def check_fit(document, said, env, data):
    """The name of the data. Raises UserError where configuration, environment and data contradict each other."""
    try:
        name = data_name(Path(data).name)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{data}: {error}") from None
    if said["max_path_length"] != env.max_episode_steps:
        raise UserError(
            f"max_path_length {said['max_path_length']}: an episode of {env.env_type} has {env.max_episode_steps} steps"
        )
    if name.endswith("-v2") and name != document["env_name"]:
        raise UserError(f"{data} are data of another task set than env_name {document['env_name']}: they must be the same")
    ours = {"n_train_tasks": env.train_tasks, "n_eval_tasks": env.test_tasks}
    for key, (first, last) in ours.items():
        if document.get(key, last - first) != last - first:
            print(f"note: {key} {document[key]}: {env.env_type} has {last - first}, and one list for all runs", file=sys.stderr)
    return name


def collected(script, argv):
    """Make the data of policy_train.py or data_collection_ml1.py by our stages 1 and 2; returns None. Raises UserError."""
    if not argv or argv[0].startswith("-"):
        raise UserError(f"give {script} a configuration first, for example configs/idaq/cheetah-vel.json")
    parser = Parser(add_help=False)
    parser.add_argument("--num_gpus", type=natural, default=0)
    for flag in ("docker", "debug", "eval", "is_uniform"):
        parser.add_argument(f"--{flag}", action="store_true")
    given, rest = parser.parse_known_args(argv[1:])
    if given.eval or given.is_uniform:
        raise UserError("--eval and --is_uniform are not here: get_datasets.py plays saved agents, or --data_type random")
    env_type = family(read_config(find_config(argv[0]))[0]["env_name"])
    scripted = env_type.startswith("metaworld_")
    if scripted != (script == "data_collection_ml1.py"):
        raise UserError(
            f"{script} is not for {env_type}: data_collection_ml1.py makes Meta-World's data, policy_train.py the others"
        )
    stages = [["get_datasets.py", "--data_type", "expert", *(["--capacity", str(45 * 500)] if scripted else [])]]
    stages = stages if scripted else [["train_data_collection.py"], *stages]
    for stage, *flags in stages:
        words = [stage, "--env_type", env_type, *flags, *rest]
        print(f"this is: python {shlex.join(words)}", file=sys.stderr)
        if status := subprocess.run([sys.executable, ROOT / stage, *words[1:]], check=False).returncode:
            sys.exit(status)
