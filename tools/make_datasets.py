"""Make the datasets of all families whose behaviour policies come with the repository, and compare their checksums.

    python -m tools.make_datasets
    python -m tools.make_datasets --env_types cheetah_vel ant_dir --qualities medium replay

Runs get_datasets.py with the committed policies (behaviour/) for every family and quality, over all cores; a dataset that
it has made from these policies is skipped, so the same command goes on where it stopped. Writes datasets/manifest.json with
the SHA-256 of each and says how many agree with those recorded on this kind of processor (behaviour/manifest.json); with
the same versions all do, on another kind the last bits of the physics differ. --record True adds to the record of this kind.
"""

import subprocess
import sys
import time
from pathlib import Path

from src.behaviour.store import COMMITTED, SHARED, committed_directory, is_finished
from src.data.trajectories import dataset_directory
from src.run.config import Parser, known_env_types, load_env
from src.run.errors import UserError, main_guard
from src.run.files import digest, load_tensors, read_json, write_json
from src.run.provenance import processor, provenance

RECORD = COMMITTED / "manifest.json"
SCRIPT = COMMITTED.parent / "get_datasets.py"
QUALITIES = ("medium", "expert", "mixed", "replay", "random", "cross")


@main_guard
def main(argv=None):
    families = [name for name in known_env_types() if is_finished(committed_directory(name) / SHARED)]
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--env_types", nargs="+", choices=families, default=families, help="families")
    parser.add_argument(
        "--qualities",
        nargs="+",
        choices=QUALITIES,
        help="kinds of data (default: all, cross where the dynamics differ)",
    )
    parser.add_argument("--output_dir", default=".", help="root under which datasets/ is written")
    parser.add_argument("--record", action="boolean", default=False, help="record what is written for this kind of processor")
    args = parser.parse_args(argv)
    records = read_json(RECORD) if RECORD.exists() else {}
    recorded = records.get(processor(), {}).get("sha256", {})
    root, began = Path(args.output_dir) / "datasets", time.time()
    manifest = root / "manifest.json"
    former = read_json(manifest) if manifest.exists() else {}
    written, players = former.get("sha256", {}), former.get("policies", {})
    for env_type in args.env_types:
        policies = digest(load_tensors(committed_directory(env_type) / SHARED / "checkpoints.safetensors"))
        for quality in args.qualities or qualities_of(env_type):
            name, there = f"{env_type}/{quality}", checksum(root, env_type, quality)
            made = there == written.get(name) and players.get(name) == policies
            if there is None or not (made or there == recorded.get(name)):
                words = ["--env_type", env_type, "--data_type", quality, "--output_dir", args.output_dir, "--no-resume"]
                words += [] if quality == "random" else ["--behaviour", "committed"]
                if subprocess.run([sys.executable, str(SCRIPT), *words]).returncode:
                    raise UserError(f"{name} failed; mend what it says, then run the same command again")
            written[name], players[name] = checksum(root, env_type, quality), policies
            write_json(manifest, {"sha256": written, "policies": players, **provenance()})
    if args.record:
        write_json(RECORD, {**records, processor(): {"sha256": {**recorded, **written}, **provenance()}})
        print(f"recorded in {RECORD}")
    same, known = sum(recorded.get(name) == value for name, value in written.items()), len(recorded.keys() & written.keys())
    print(f"{len(written)} datasets, {same} of {known} with the SHA-256 recorded on {processor()}: {manifest}")
    print(f"{(time.time() - began) / 60:.1f} minutes; next: train_context.py")


def qualities_of(env_type):
    """The kinds of data of a family: cross where tasks differ in the dynamics, which no reward function tells apart."""
    rewarded = hasattr(load_env(env_type).make(), "compute_rewards")
    return [quality for quality in QUALITIES if quality != "cross" or not rewarded]


def checksum(root, env_type, quality):
    """SHA-256 of a dataset's arrays as its metadata tells, or None where there is no dataset."""
    path = dataset_directory(root, env_type, quality) / "data" / "metadata.json"
    return read_json(path)["sha256"] if path.exists() else None


if __name__ == "__main__":
    main()
