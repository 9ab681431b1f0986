"""IDAQ's configurations, the original's CONFIG.json or ours in configs/idaq/: what they may say, and what becomes of it here.

Keys that have no effect here are named, unknown ones refused.
"""

import sys
from pathlib import Path

from envs.idaq_points import RADIUS
from src.run.config import CONFIG_DIR, known_env_types
from src.run.errors import UserError
from src.run.files import read_json
from src.run.flags import nearest

FAMILIES = {
    "sparse-point-robot": "point_robot_semicircle",
    "point-robot-wind": "point_robot_wind_dense",
    "cheetah-vel": "cheetah_vel_100",
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
    idle = {*algorithm} & NO_EFFECT | {*document} & OUTER_NO_EFFECT | {*parts["env_params"]} & {"n_tasks", "randomize_tasks"}
    if idle:
        print(f"note: without effect here, of {Path(path).name}: {', '.join(sorted(idle))}", file=sys.stderr)
    sizes = {key: document[key] for key in ("latent_size", "net_size") if key in document}
    for key, value in (sizes | algorithm).items():
        if key in READ - {"divergence_name"} and not (isinstance(value, int | float) and abs(value) < 1e12):
            raise UserError(f"{path}: {key} must be a number, not {value!r}")
        if key in SWITCHES and value not in (0, 1):
            raise UserError(f"{path}: {key} must be 0 or 1, not {value!r}")
    if parts["env_params"].get("goal_radius", RADIUS) != RADIUS:
        raise UserError(f"{path}: goal_radius {parts['env_params']['goal_radius']!r}: the rewarded disc has {RADIUS} here")
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
