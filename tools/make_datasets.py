"""Make the datasets of all families whose behaviour policies come with the repository, and compare their checksums.

    python -m tools.make_datasets
    python -m tools.make_datasets --env_types cheetah_vel ant_dir --qualities medium replay

Runs get_datasets.py with the committed policies (behaviour/) for every family and quality, a core for each; a dataset that it
has made from these policies is skipped, so the same command goes on where it stopped. Logs lie in saves/datasets/. Writes
datasets/manifest.json with the SHA-256 of each and says how many agree with those recorded on this kind of processor
(behaviour/manifest.json); with the same versions all do, on another kind the last bits of the physics differ. --record True adds
to the record of this kind.
"""

import hashlib
import time
from pathlib import Path

from src.behaviour.store import COMMITTED, SHARED, committed_directory
from src.data.trajectories import dataset_directory
from src.run.backends import Running, open_backend
from src.run.config import known_env_types, load_env
from src.run.errors import UserError, main_guard
from src.run.files import digest, load_tensors, read_json, write_json
from src.run.flags import Parser
from src.run.provenance import processor, provenance
from src.run.scheduler import Job, Scheduler, exclusive
from src.run.settings import add_settings, pick

RECORD = COMMITTED / "manifest.json"
MADE = ("medium", "expert", "mixed", "replay", "random", "cross")


@main_guard
def main(argv=None):
    families = [name for name in known_env_types() if not name.startswith("gym_") and committed_directory(name).is_dir()]
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--env_types", nargs="+", choices=families, default=families, help="families")
    parser.add_argument(
        "--qualities",
        nargs="+",
        choices=MADE,
        help="kinds of data (default: all, cross where the dynamics differ)",
    )
    parser.add_argument("--output_dir", default=".", help="root under which datasets/ is written")
    parser.add_argument("--record", action="boolean", default=False, help="record what is written for this kind of processor")
    add_settings(parser, Running)
    args = parser.parse_args(argv)
    records = read_json(RECORD) if RECORD.exists() else {}
    recorded = records.get(processor(), {}).get("sha256", {})
    root, began = Path(args.output_dir) / "datasets", time.time()
    manifest = root / "manifest.json"
    former = read_json(manifest) if manifest.exists() else {}
    written, players = former.get("sha256", {}), former.get("policies", {})
    policies = {name: policies_digest(committed_directory(name)) for name in args.env_types}

    def note(job, seconds=None):
        env_type, quality = job.name.split("-")
        name = f"{env_type}/{quality}"
        written[name], players[name] = checksum(root, env_type, quality), policies[env_type]
        write_json(manifest, {"sha256": written, "policies": players, **provenance()})

    jobs = []
    for env_type in args.env_types:
        for quality in args.qualities or qualities_of(env_type):
            name, there, job = f"{env_type}/{quality}", checksum(root, env_type, quality), dataset_job(env_type, quality, args)
            made = there == written.get(name) and players.get(name) == policies[env_type]
            if there is None or not (made or there == recorded.get(name)):
                jobs.append(job)
            else:
                note(job)
    logs, running = Path(args.output_dir, "saves", "datasets"), pick(Running, args, slurm=tuple(args.slurm))
    if jobs:
        with exclusive(logs) as lock, open_backend(running, logs) as backend:
            failed = Scheduler(backend, logs, running.retries, lock, note).run(jobs)
        if failed:
            raise UserError(f"{failed} datasets failed; mend what their logs say, then run the same command again")
    if args.record:
        write_json(RECORD, {**records, processor(): {"sha256": {**recorded, **written}, **provenance()}})
        print(f"recorded in {RECORD}")
    same, known = sum(recorded.get(name) == value for name, value in written.items()), len(recorded.keys() & written.keys())
    print(f"{len(written)} datasets, {same} of {known} with the SHA-256 recorded on {processor()}: {manifest}")
    print(f"{(time.time() - began) / 60:.1f} minutes; next: train_context.py")


def policies_digest(directory):
    """One SHA-256 of the weights of all agents in a folder of behaviour policies; that of the shared agent where there is one."""
    found = {path.parent.name: digest(load_tensors(path)) for path in sorted(directory.glob("*/checkpoints.safetensors"))}
    return found.get(SHARED) or hashlib.sha256(" ".join(found.values()).encode()).hexdigest()


def qualities_of(env_type):
    """The kinds of data of a family: cross where tasks differ in the dynamics, which no reward function tells apart."""
    rewarded = hasattr(load_env(env_type).make(), "compute_rewards")
    return [quality for quality in MADE if quality != "cross" or not rewarded]


def dataset_job(env_type, quality, args):
    """The command that makes one dataset anew."""
    words = ["get_datasets.py", "--env_type", env_type, "--data_type", quality, "--output_dir", args.output_dir, "--no-resume"]
    words += ["--workers", "1"] + ([] if quality == "random" else ["--behaviour", "committed"])
    return Job(tuple(words), f"{env_type} data", f"{env_type}-{quality}")


def checksum(root, env_type, quality):
    """SHA-256 of a dataset's arrays as its metadata tells, or None where there is no dataset."""
    path = dataset_directory(root, env_type, quality) / "data" / "metadata.json"
    return read_json(path)["sha256"] if path.exists() else None


if __name__ == "__main__":
    main()
