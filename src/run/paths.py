"""Where artifacts lie. One function per kind, used by whoever writes and whoever reads."""

from pathlib import Path


def context_directory(args):
    """World model of an environment, quality, recipe and seed."""
    return Path(args.output_dir, "saves", args.env_type, args.data_quality, f"context{args.suffix}", f"seed_{args.seed}")


def policy_directory(args, method, regime):
    """Policy of a method (for example meta_dt+fast) trained for a regime (few_shot, zero_shot)."""
    return Path(args.output_dir, "saves", args.env_type, args.data_quality, method, regime, f"seed_{args.seed}")
