"""The published commands of IDAQ, behind `python -m baselines.idaq` in the place of `python`:

    run_ml1.sh | run_point.sh | run_cheetah.sh
    launch_experiment_cpearl.py CONFIG.json DATA_DIR --use_brac 1 --is_onlineadapt_max 1 ...      (or without the script's name)
    policy_train.py CONFIG.json, data_collection_ml1.py CONFIG.json

CONFIG.json is the original's, or one of configs/idaq/, which is taken where the path does not exist. What it says becomes our
flags. A flag of the command counts more; one that is not given changes nothing (the original writes all its flags' defaults over
the file); flags of ours may follow. Keys that have no effect here are named, unknown ones refused. DATA_DIR holds files of the
original (baselines/idaq_data.py); where it does not exist the dataset `expert` of get_datasets.py is learned from.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from baselines.idaq_data import convert
from src.data.qualities import data_name
from src.run.config import CONFIG_DIR, Parser, known_env_types, load_env, natural, nearest, positive_int, real
from src.run.errors import UserError
from src.run.files import read_json
from src.run.provenance import ROOT

FAMILIES = {
    "sparse-point-robot": "point_robot_semicircle",
    "point-robot-wind": "point_robot_wind_dense",
    "cheetah-vel": "cheetah_vel_100",
}
PRESETS = {  # script: its configuration and data
    "run_ml1.sh": ("cpearl-ml1.json", "./data/soccer-v2"),
    "run_point.sh": ("cpearl-sparse-point-robot.json", "./data/sparse-point-robot"),
    "run_cheetah.sh": ("cpearl-cheetah-vel.json", "./data/cheetah-vel"),
}
SWITCHES = ("use_brac", "use_information_bottleneck", "is_zloss", "is_onlineadapt_thres", "is_onlineadapt_max",
            "allow_backward_z", "is_true_sparse_rewards", "use_value_penalty")  # fmt: skip
DEFAULTS = {  # of the original, where ours are others
    "latent_size": 20, "net_size": 256, "num_iterations": 500, "num_train_steps_per_itr": 2000, "meta_batch": 16,
    "embedding_batch_size": 64, "max_path_length": 200, "num_steps_per_eval": 600, "num_exp_traj_eval": 1, "discount": 0.99,
    "reward_scale": 5, "use_brac": 1, "alpha_init": 500, "alpha_max": 2000, "z_loss_weight": 10, "is_zloss": 1,
    "is_onlineadapt_max": 0, "is_onlineadapt_thres": 0, "sparse_rewards": 0,
}  # fmt: skip
OURS = {
    "latent_size": "code_size", "net_size": "width", "meta_batch": "tasks_per_step", "batch_size": "batch_size",
    "embedding_batch_size": "context_size", "num_train_steps_per_itr": "eval_every", "num_exp_traj_eval": "reference_episodes",
    "onlineadapt_max_num_candidates": "candidates", "discount": "gamma", "soft_target_tau": "tau", "policy_lr": "learning_rate",
    "context_lr": "encoder_learning_rate", "c_iter": "dual_steps", "reward_scale": "reward_scale", "alpha_init": "kl_weight",
    "alpha_max": "kl_weight_max", "target_divergence": "kl_target", "z_loss_weight": "metric_weight", "num_ensemble": "ensemble",
}  # fmt: skip
READ = {*OURS, *DEFAULTS, *SWITCHES, "n_trj", "train_epoch", "qf_lr", "vf_lr", "embedding_mini_batch_size", "divergence_name"}
NO_EFFECT = {  # read by nothing there, or part of what we do otherwise
    "num_initial_steps", "num_tasks_sample", "num_steps_prior", "num_steps_posterior", "num_extra_rl_steps_posterior",
    "num_evals", "replay_buffer_size", "save_replay_buffer", "save_algorithm", "save_environment", "update_post_train",
    "recurrent", "dump_eval_paths", "render_eval_paths", "sample", "epoch", "eval_epoch", "data_dir", "is_onlineadapt_model",
    "is_onlineadapt_x", "is_predict_task_id", "is_offline_pearl", "agent_type", "kl_lambda", "policy_mean_reg_weight",
    "policy_std_reg_weight", "policy_pre_activation_weight", "allow_eval", "mb_replace", "dropout", "train_alpha",
    "max_entropy", "c_lr", "alpha_lr", "r_thres", "use_next_obs_in_context",
}  # fmt: skip
OUTER = {"env_name", "n_train_tasks", "n_eval_tasks", "latent_size", "net_size", "env_params", "algo_params"}
OUTER_NO_EFFECT = {"seed_list", "path_to_weights", "load_dir", "algo_type", "randomize_tasks", "util_params"}
ENVIRONMENT = {"n_tasks", "randomize_tasks", "goal_radius", "max_episode_steps", "max_path_length"}


def our_words(argv):
    """The words of our own command for those of a published one; our own stay as they are. None where it is done: it made data.

    argv: words, or None for those of this process. Raises UserError where a word is neither, or contradicts another.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        return argv
    name, rest = Path(argv[0]).name, argv[1:]
    if name in PRESETS:
        config, data = PRESETS[name]
        return launched(find_config(config), data, rest)
    if name in ("policy_train.py", "data_collection_ml1.py"):
        return collected(name, rest)
    if name != "launch_experiment_cpearl.py":
        if Path(name).suffix != ".json":
            known = ["CONFIG.json DATA_DIR", "launch_experiment_cpearl.py", *PRESETS, "policy_train.py", "data_collection_ml1.py"]
            raise UserError(f"{argv[0]} is neither a flag nor a published command: {', '.join(known)}")
        rest = argv
    if len(rest) < 2 or any(word.startswith("-") for word in rest[:2]):
        raise UserError("give CONFIG.json and DATA_DIR first, for example configs/idaq/cpearl-ml1.json data/soccer-v2")
    return launched(find_config(rest[0]), rest[1], rest[2:])


def find_config(path):
    """The path of a configuration, or of ours of that name where it does not exist."""
    ours = CONFIG_DIR / "idaq" / Path(path).name
    return ours if not Path(path).exists() and ours.exists() else Path(path)


def read_config(path):
    """(document, algo_params) of a configuration. Raises UserError for what is no key, or no number where one is needed."""
    document = read_json(path, "env_name", mend=f"give a configuration of IDAQ; ours are in {CONFIG_DIR.name}/idaq")
    parts = {"": document, "env_params": document.get("env_params", {}), "algo_params": document.get("algo_params", {})}
    known = {"": OUTER | OUTER_NO_EFFECT, "env_params": ENVIRONMENT, "algo_params": READ | NO_EFFECT}
    for part, values in parts.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: {part} must be an object")
        for key in values:
            if key not in known[part]:
                raise UserError(f"{path}: unknown key {key!r}{nearest(key, known[part])}")
    algorithm = parts["algo_params"]
    idle = [key for key in algorithm if key in NO_EFFECT] + [key for key in document if key in OUTER_NO_EFFECT]
    if idle:
        print(f"note: without effect here, of {Path(path).name}: {', '.join(sorted(idle))}", file=sys.stderr)
    sizes = {key: document[key] for key in ("latent_size", "net_size") if key in document}
    for key, value in (sizes | algorithm).items():
        if key in READ - {"divergence_name"} and not (isinstance(value, int | float) and abs(value) < 1e12):
            raise UserError(f"{path}: {key} must be a number, not {value!r}")
        if key in SWITCHES and value not in (0, 1):
            raise UserError(f"{path}: {key} must be 0 or 1, not {value!r}")
    inner = parts["env_params"].get("max_episode_steps", parts["env_params"].get("max_path_length"))
    length = {} if inner is None or "max_path_length" in algorithm else {"max_path_length": inner}
    return document, sizes | length | algorithm


def family(name, sparse=False):
    """Our environment of an `env_name`. Raises UserError where there is none."""
    found = FAMILIES.get(name) if isinstance(name, str) else None
    if isinstance(name, str) and name.endswith("-v2"):
        found = f"metaworld_{name.removesuffix('-v2').replace('-', '_')}"
    if found not in known_env_types():
        known = [*FAMILIES, *(f"{key[10:].replace('_', '-')}-v2" for key in known_env_types() if key.startswith("metaworld_"))]
        raise UserError(f"env_name {name!r} has no family here{nearest(str(name), known)}")
    if sparse and found != "point_robot_semicircle":
        raise UserError(f"is_sparse_reward 1: {name} has no sparse reward, sparse-point-robot has")
    return f"{found}_sparse" if sparse else found


def flags_of(argv):
    """({published flag: number}, further words, which are ours)."""
    parser = Parser(add_help=False)
    kinds = {name: switch for name in SWITCHES[:-1]}
    kinds |= {"gpu": natural, "is_sparse_reward": switch, "num_exp_traj_eval": positive_int, "r_thres": real}
    for name, kind in (kinds | {"num_ensemble": positive_int}).items():
        parser.add_argument(f"--{name}", type=kind)
    given, rest = parser.parse_known_args(argv)
    return {name: value for name, value in vars(given).items() if value is not None}, rest


def switch(value):
    """argparse type: 0 or 1."""
    if value not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"{value!r} is not 0 or 1")
    return int(value)


def launched(path, data, argv):
    """Our words for launch_experiment_cpearl.py."""
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
    output_dir = first.parse_known_args(rest)[0].output_dir
    if Path(data).exists():
        convert(data, env, name, output_dir, *(int(said[key]) if key in said else None for key in ("n_trj", "train_epoch")))
    else:
        name = "expert"
        print(f"note: there is no {data}: the dataset expert of get_datasets.py is learned from", file=sys.stderr)
    flags = [word for key, value in settings.items() if key not in ours for word in (f"--{key}", str(value))]
    words = ["--env_type", env.env_type, "--data_quality", name, *flags, *rest]
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


def translated(said, env):
    """{our setting: value}. Raises UserError for what is not here, or cannot be."""
    refused = {
        "use_information_bottleneck": "the encoder is deterministic here; --belief_noise draws around its belief",
        "is_onlineadapt_thres": "episodes are accepted by the best score, not by a fixed return: is_onlineadapt_max 1",
        "allow_backward_z": "the encoder learns by the metric loss alone",
        "use_value_penalty": "there is none here",
    }
    for key, reason in refused.items():
        if said.get(key):
            raise UserError(f"{key} 1 is not here: {reason}")
    if not said["is_zloss"]:
        raise UserError("is_zloss 0 leaves the encoder without a loss: give 1")
    if said.get("divergence_name", "kl") != "kl":
        raise UserError(f"divergence_name {said['divergence_name']!r} is not here: kl is")
    if len({said[key] for key in ("policy_lr", "qf_lr", "vf_lr") if key in said}) > 1:
        raise UserError("policy_lr, qf_lr and vf_lr must be the same: all networks have one learning rate")
    if said.get("embedding_mini_batch_size", said["embedding_batch_size"]) != said["embedding_batch_size"]:
        raise UserError("embedding_mini_batch_size must be embedding_batch_size: nothing is recurrent here")
    episodes = int(said["num_steps_per_eval"] // env.max_episode_steps)
    if said["is_onlineadapt_max"] and said["num_exp_traj_eval"] > episodes - 2:
        raise UserError(
            f"num_exp_traj_eval {said['num_exp_traj_eval']}: num_steps_per_eval {said['num_steps_per_eval']} are {episodes} "
            f"episodes, of which one is the last: at most {episodes - 2} leave room for inference"
        )
    settings = {"rl": "brac", "steps": int(said["num_iterations"] * said["num_train_steps_per_itr"])}
    settings["warmup_episodes"] = episodes - 1
    settings |= {ours: said[key] for key, ours in OURS.items() if key in said}
    if not said["use_brac"]:  # soft actor-critic
        settings |= {"kl_weight": 0, "kl_weight_max": 0}
    if not said["is_onlineadapt_max"]:
        settings = {key: value for key, value in settings.items() if key not in ("reference_episodes", "candidates")}
        settings["adaptation"] = "plain"
    return settings


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
