"""What learned rewards are worth beside the environment's own (src/models/reward_model.py), as in the diagnostics of stage 3.

    python -m benchmarks.learned_rewards --env_type point_robot --qualities replay medium --seeds 0 1 2

Half a minute of one core each; the models are left under saves/, where stages 3 and 4 find them. Writes
benchmarks/results/learned_rewards-<env_type>.json.
"""

import dataclasses
import time
from pathlib import Path

from src.data.qualities import data_name
from src.data.relabel import EnvironmentRewards
from src.evaluation.method import RunSettings, TrainingData
from src.models.reward_model import judge, learned_rewards
from src.run.command_line import parse_args, script_parser
from src.run.devices import keep_memory
from src.run.errors import main_guard
from src.run.files import write_json
from src.run.flags import natural
from src.run.provenance import provenance
from src.run.settings import pick


@main_guard
def main(argv=None):
    parser = script_parser(__doc__)
    parser.add_argument("--qualities", type=data_name, nargs="+", default=["replay", "medium"], help="datasets")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0], help="of the models, in place of --seed")
    parser.add_argument("--output", help="result file (default: see above)")
    args = parse_args(parser, "learned_rewards", argv)
    keep_memory()
    rows = []
    for quality in args.qualities:
        data = TrainingData(pick(RunSettings, args, data_quality=quality))
        true = EnvironmentRewards(data.environment, data.episodes)
        for seed in args.seeds:
            begun = time.process_time()
            rewards = learned_rewards(dataclasses.replace(pick(RunSettings, args), data_quality=quality, seed=seed), data)
            seconds = round(time.process_time() - begun, 1)
            found = judge(rewards, true, data.episodes, seed)["learned_reward"]
            size = {"tasks": len(data.train_tasks), "transitions": int(data.episodes.lengths.sum())}
            rows.append(
                {"quality": quality, "seed": seed, **size, **found, "processor_s": seconds, "dataset_sha256": data.sha256}
            )
    path = Path(args.output or Path(__file__).parent / "results" / f"learned_rewards-{args.env_type}.json")
    write_json(path, {"env_type": args.env_type, "rows": rows, **provenance()})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
