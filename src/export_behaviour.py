"""Keep the policies of a trained shared agent in the repository, so that get_datasets.py needs no stage 1.

    python -m src.export_behaviour --env_type cheetah_vel --keep 20

Reads saves/<env_type>/behaviour/multitask (train_data_collection.py --algo multitask_sac) and writes
configs/behaviour/<env_type>/multitask in the same format with fewer checkpoints: the first, the last, and others spread
evenly over training steps and changes of the mean return alike, so that the levels between random and expert stay.
"""

import numpy as np
import torch

from src.behaviour import SHARED, behaviour_directory, committed_directory, is_finished
from src.checkpoint import UserError, load_tensors, main_guard, read_json, save_tensors, write_json
from src.config import next_command, parse_args, positive_int, script_parser


def make_parser():
    parser = script_parser(__doc__)
    parser.add_argument("--keep", type=positive_int, default=20, help="checkpoints to keep, about 45 kB each")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "export_behaviour", argv)
    source = behaviour_directory(args.output_dir, args.env_type) / SHARED
    if not is_finished(source):
        train = next_command(args, "train_data_collection.py", "--algo", "multitask_sac")
        raise UserError(f"no finished shared agent in {source}; train it: {train}")
    curve, tensors = read_json(source / "curve.json"), load_tensors(source / "checkpoints.safetensors")
    rows = choose(np.mean(curve["stochastic_returns"], axis=(1, 2)), args.keep)
    target = committed_directory(args.env_type) / SHARED
    features = tensors.pop("task_features")
    kept = {name: values[torch.from_numpy(rows)] for name, values in tensors.items()}
    save_tensors(target / "checkpoints.safetensors", {**kept, "task_features": features})
    write_json(target / "config.json", read_json(source / "config.json"))
    shorter = {name: [curve[name][row] for row in rows] for name in ("steps", "stochastic_returns")}
    write_json(target / "curve.json", {**curve, **shorter})
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {len(rows)} of {len(curve['steps'])} checkpoints, {size / 1e6:.1f} MB; commit it")


def choose(returns, keep):
    """Indices of at most `keep` of the C checkpoints with mean `returns` (C,), first and last among them."""
    change = np.abs(np.diff(returns))
    steps = change / max(change.sum(), 1e-12) + 1 / max(len(change), 1)
    place = np.concatenate([[0], np.cumsum(steps)])
    wanted = np.linspace(0, place[-1], keep) if keep > 1 else place[-1:]
    return np.unique(np.abs(place[None] - wanted[:, None]).argmin(1))


if __name__ == "__main__":
    main()
