"""Stage 3: train the world model, whose context encoder tells Meta-DT the task.

    python train_context.py --env_type point_robot --data_quality medium
    python train_context.py --env_type point_robot --data_quality medium --recipe fast
    python train_context.py --env_name AntDir-v0
    python train_context.py --env_type ant_dir --import_from context_models_best.pt     # trained by the official code

Point-Robot on two cores: the fast recipe about four minutes, the paper's 301 epochs about half an hour. The same command goes
on with an interrupted run. Writes saves/<env_type>/<quality>/context[+recipe]/seed_<s>/ with the best and the last weights, and
results/<env_type>/<quality>/context[+recipe]/diagnostics/seed_<s>.json with the diagnostics. Another model or decoding than the
recipe's has a folder of its own, context[+recipe]-<what is changed>. Next: train_meta_dt.py (--world_model names such a folder).
"""

import dataclasses
from pathlib import Path

import torch

from src.data.relabel import true_rewards
from src.data.transitions import Decoding
from src.evaluation.method import DataSettings, RunSettings, TrainingData, columns, training_facts
from src.evaluation.results import DIAGNOSTICS, write_result
from src.models.official import load_official_world_model
from src.models.probe import diagnose
from src.models.reward_model import judge, make_rewards
from src.models.world_model import WorldModelSettings, load_world_model
from src.models.world_model_training import (
    Validation,
    WorldModelOptimisation,
    WorldModelTraining,
    split_episodes,
    validate,
)
from src.run import distributed
from src.run.command_line import next_command, parse_args, script_parser, settings
from src.run.devices import keep_memory
from src.run.directory import run_directory
from src.run.errors import UserError, main_guard
from src.run.files import digest
from src.run.paths import context_directory
from src.run.settings import ablation_name, add_settings, changed, pick, setting

VOLATILE = ("resume", "device", "threads", "output_dir", "tensorboard")  # settings that a resumed run may change


@dataclasses.dataclass(frozen=True)
class Import:
    """import"""

    import_from: str | None = setting(
        None, "a world model of the official code, in place of training: its context_models_*.pt, read without running code"
    )  # fmt: skip


def make_parser():
    parser = script_parser(__doc__)
    add_settings(parser, DataSettings, WorldModelSettings, Decoding, WorldModelOptimisation, Validation, Import)
    return parser


@main_guard
def main(argv=None):
    parser = make_parser()
    args = parse_args(parser, "train_context", argv)
    run, validation = pick(RunSettings, args), pick(Validation, args)
    model, decoding, optimisation = (pick(kind, args) for kind in (WorldModelSettings, Decoding, WorldModelOptimisation))
    check(run, model, decoding, optimisation, parser.get_default("relabel_share"))
    keep_memory()
    distributed.join(run.device)
    ablation = "none" if args.import_from else ablation_name(changes(parser, args))  # an import is trained by nothing here
    config, relabelled = settings(args), decoding.decode == "relabelled"
    config |= {} if ablation == "none" else {"ablation": ablation}
    made_from, official = {}, None
    if args.import_from is not None:
        official, head = open_official(args.import_from, model, relabelled)
        model = dataclasses.replace(model, embedding_size=official.gru.input_size // 3, standardise=False)
        config |= dataclasses.asdict(model) | {f"{other}_weight": float(other == head) for other in ("reward", "state")}
        made_from["official_world_model_sha256"] = digest(official.state_dict())
    data = TrainingData(run)
    episodes, held_out = split_episodes(data.episodes, validation.validation_share, run.seed)
    rewards = make_rewards(run, data, decoding.true_rewards) if relabelled else None
    if rewards is None:
        data.release()  # both parts are copies
    made_from |= {"dataset_sha256": data.sha256, **(rewards.made_from if rewards else {})}
    training = WorldModelTraining(
        run, episodes, held_out, model=model, optimisation=optimisation, decoding=decoding, rewards=rewards
    )
    if official is not None:
        training.take(official, args.import_from)
    with run_directory(context_directory(run, ablation), {**config, **made_from}, run.resume, VOLATILE) as directory:
        loop = training.train(directory, validation.eval_every, run.tensorboard)
        best, _ = load_world_model(directory, "best")
        errors = validate(best, training.validation, torch.device("cpu"))
        errors = {name: value for name, value in errors.items() if config[f"{name.split('_')[0]}_weight"]}
        true = true_rewards(data.environment, data.episodes) if rewards else None
        made = diagnose(run, data.environment, best, held_out, data.test_tasks, true)
        if not distributed.leads():
            return
        learned = judge(rewards, true, data.episodes, run.seed) if rewards else {}
        path = write_result(
            run.output_dir, run.env_type, run.data_quality, method="context", recipe=run.recipe, ablation=ablation,
            regime=DIAGNOSTICS, protocol=None, validation=run.validation, seed=run.seed, task_ids=[],
            privileges=rewards.privileges if rewards else "none", measured={"embedding": made["embedding"]},
            errors={name: six_digits(value) for name, value in errors.items()}, probe=made["probe"],
            curve={name: [six_digits(value) for value in values] for name, values in columns(loop.curve).items()},
            training=training_facts(loop, {"best": best}),
            made_from=made_from, config=config, directory=directory, **learned,
        )  # fmt: skip
    report(errors, made["probe"])
    follow = next_command(
        run, "train_meta_dt.py", "--data_quality", run.data_quality, *(["--validation"] if run.validation else []),
        *(["--world_model", str(directory)] if ablation != "none" else []),
    )  # fmt: skip
    print(f"world model in {directory}, diagnostics in {path}; next: {follow}")


def changes(parser, args):
    """Names of what is trained otherwise than by the recipe: the world model is an ablation's, in a folder of its own."""
    return [name for kind in (Decoding, WorldModelSettings) for name in changed(pick(kind, args), parser.get_default)]


def check(run, model, decoding, optimisation, relabel_share):
    """Settings that contradict each other; relabel_share: the recipe's. Raises UserError."""
    if model.context_horizon > run.env.max_episode_steps:
        raise UserError(
            f"--context_horizon {model.context_horizon} is longer than an episode, {run.env.max_episode_steps} steps: give 0, "
            "which reads the whole of it"
        )
    if not (optimisation.reward_weight or optimisation.state_weight):
        raise UserError("--reward_weight 0 --state_weight 0 leaves nothing to learn: make one of them positive")
    if decoding.true_rewards and decoding.decode != "relabelled":
        raise UserError("--true_rewards has no effect without --decode relabelled: give both")
    if decoding.relabel_share != relabel_share and decoding.decode != "relabelled":
        raise UserError("--relabel_share has no effect without --decode relabelled: give both")


def open_official(path, model, relabelled):
    """A world model of the official code and which head it has, where the settings (WorldModelSettings) are such a one's.
    Raises UserError."""
    if not model.context_horizon or relabelled:
        raise UserError(
            "--import_from takes a world model as published: leave out the recipe and the switches that are not the paper's"
        )
    if not Path(path).is_file():
        raise UserError(f"--import_from {path}: there is no such file; give a context_models_*.pt of the official code")
    return load_official_world_model(path, model.context_horizon)


def six_digits(value):
    return value if isinstance(value, int) else float(f"{value:.6g}")


def report(errors, probe):
    """Print the diagnostics: what a number is worth stands beside it."""
    for name in [name for name in ("reward", "state") if f"{name}_rmse" in errors]:
        print(f"{name}: validation error {errors[f'{name}_rmse']:.4g} (predicting the mean: {errors[f'{name}_std']:.4g})")
    probes = ", ".join(f"{n} {'-' if v['r2'] is None else format(v['r2'], '.3f')}" for n, v in probe.items())
    print(f"linear probe of the task parameters from z, R²: {probes}")


if __name__ == "__main__":
    main()
