"""Where artifacts lie. One function per kind, used by whoever writes and whoever reads."""

from pathlib import Path


def context_directory(run, ablation="none"):
    """World model of an environment, quality, recipe and seed (RunSettings)."""
    name = f"context{run.suffix}" + ("" if ablation == "none" else f"-{ablation}")
    return Path(run.output_dir, "saves", run.env_type, run.data_quality, name, f"seed_{run.seed}")


def reward_model_directory(run):
    """Reward model of an environment, quality and seed (RunSettings); one for all recipes and methods."""
    name = "reward_model" + ("-validation" if run.validation else "")  # then it knows fewer tasks
    return Path(run.output_dir, "saves", run.env_type, run.data_quality, name, f"seed_{run.seed}")


def policy_directory(run, method, regime):
    """Policy of a method (for example meta_dt+fast) trained for a regime (few_shot, zero_shot)."""
    return Path(run.output_dir, "saves", run.env_type, run.data_quality, method, regime, f"seed_{run.seed}")


def reproduce_directory(output_dir, env_type):
    """What tools/reproduce.py keeps of a family: the logs of its runs, and failed.json, which names those that failed."""
    return Path(output_dir, "saves", env_type, "reproduce")
