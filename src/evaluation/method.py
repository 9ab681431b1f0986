"""What every method shares, Meta-DT and the compared ones: flags, data, training with its learning curve, and the final results.

A method is one file: its settings, and a class with `parts`, `weights`, `update` and `agent` (see Method). Its main function:

    parser = method_parser(__doc__, MySettings)
    args = parse_args(parser, "baselines.mine", argv)
    return train_and_measure("mine", pick(RunSettings, args), pick(Evaluation, args), settings(args), steps, build)
"""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

from src.data import trajectories
from src.data.qualities import data_name
from src.evaluation.evaluate import evaluate
from src.evaluation.references import reference_levels
from src.evaluation.results import write_result
from src.evaluation.saved import save_known
from src.run import distributed
from src.run.command_line import TaskRange, next_command, report_command, script_parser
from src.run.directory import run_directory
from src.run.errors import UserError
from src.run.files import load_tensors, read_json, write_json
from src.run.flags import natural, positive_int
from src.run.loop import Loop
from src.run.paths import policy_directory
from src.run.settings import add_settings, setting


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run is: the settings that every script has (`script_parser`), and those of DataSettings where there are data."""

    env: object  # EnvConfig
    env_type: str
    config: str | None
    recipe: str
    suffix: str
    seed: int
    device: object  # torch.device
    output_dir: str
    resume: bool
    tensorboard: bool
    data_quality: str | None = None
    validation: bool = False


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """data and tasks"""

    data_quality: str = setting("medium", "which dataset", data_name, flags=("--data_type",))
    validation: bool = setting(False, "test on the validation tasks, left out of training")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """evaluation"""

    eval_only: bool = setting(False, "no training: measure the saved policy")
    fresh: bool = setting(False, "final figures: measure the policy on the fresh tasks instead of the test tasks")
    eval_every: int = setting(500, "gradient steps between evaluations and checkpoints", positive_int)
    eval_episodes: int = setting(20, "final evaluation episodes per task", positive_int)
    curve_episodes: int = setting(5, "evaluation episodes per task during training", positive_int)
    warmup_episodes: int = setting(3, "N: few-shot episodes before each evaluated episode", positive_int)
    later_episodes: int = setting(2, "few-shot episodes after the evaluated one, for the adaptation figure", natural)


# settings that a resumed or re-evaluated run may change
VOLATILE = (
    "resume", "device", "output_dir", "tensorboard", "threads", "eval_only", "fresh", "eval_episodes", "warmup_episodes",
    "later_episodes",
)  # fmt: skip


class Method(Protocol):
    """A method in training.

    parts: {name: object}, what must go on after an interruption: modules, optimisers, torch generators (see Loop).
    weights: {"model": module}, what acts; kept as <name>.safetensors.
    known: {name: tensor}, what an agent needs of the training data beside the weights (src/evaluation/saved.py). A method without
        it, or with a `save` of its own, is not kept for use elsewhere, or keeps itself.
    """

    parts: dict
    weights: dict

    def update(self, step):
        """One gradient step, number `step` from 1. Returns the losses, a dict of scalar tensors with "loss" among them."""

    def agent(self, warmup):
        """The frozen policy as a new Agent that is to live `warmup` episodes before the evaluated one."""


class TrainingData:
    """A dataset split by tasks. Raises UserError where it is missing or holds no training task.

    Attributes: env (EnvConfig), environment, episodes (Trajectories of the training tasks alone), train_tasks, test_tasks (the
    validation tasks with `validation`, which are left out of training then), sha256 of the dataset, dataset (with the test tasks'
    episodes: for reference levels, never for training).
    """

    def __init__(self, run):
        self.env, self.environment = run.env, run.env.make()
        make = next_command(run, "get_datasets.py", "--data_type", run.data_quality)
        self.dataset = trajectories.load(Path(run.output_dir) / "datasets", run.env_type, run.data_quality, run.env, make)
        validation = range(*run.env.validation_tasks)
        wanted = [task for task in range(*run.env.train_tasks) if not (run.validation and task in validation)]
        if not wanted:
            raise UserError(f"--validation leaves no training task: give {run.env_type}.yaml validation_tasks inside train_tasks")
        self.train_tasks = [task for task in wanted if task in self.dataset.tasks]
        self.test_tasks = list(validation if run.validation else range(*run.env.test_tasks))
        if not self.train_tasks:
            chosen = TaskRange(wanted[0], wanted[-1] + 1)
            raise UserError(
                f"the dataset holds none of the training tasks {wanted[0]}-{wanted[-1]}: generate some of them: "
                f"{next_command(run, 'get_datasets.py', '--data_type', run.data_quality, *chosen.words())}"
            )
        if len(self.train_tasks) < len(wanted):
            print(f"note: the dataset holds {len(self.train_tasks)} of the {len(wanted)} training tasks")
        self.episodes = self.dataset.select(self.train_tasks)
        self.sha256 = self.dataset.metadata["sha256"]

    def release(self):
        """Forget all episodes, once they are where they are needed."""
        self.dataset = self.episodes = None


class StrictProtocol:
    """This project's evaluation: warm-up episodes of the agent's own, see src/evaluation/evaluate.py."""

    name, parts = "strict", {}

    def __init__(self, run, evaluation, test_tasks):
        self.run, self.evaluation, self.test_tasks = run, evaluation, test_tasks
        self.final_tasks = list(range(*run.env.fresh_tasks)) if evaluation.fresh and run.env.fresh_tasks else test_tasks

    def curve(self, agent, warmup):
        """Result of the test tasks during training."""
        return evaluate(agent, self.run.env, self.test_tasks, self.evaluation.curve_episodes, warmup, self.run.seed)

    def final(self, agent, warmup, keep=0, watch=None):
        """Result of the trained policy."""
        later, episodes = self.evaluation.later_episodes if warmup else 0, self.evaluation.eval_episodes
        return evaluate(agent, self.run.env, self.final_tasks, episodes, warmup, self.run.seed, later, keep, watch)


def method_parser(docstring, *settings_classes):
    """A parser with the flags that every script and every method has, and those of the method's own settings."""
    parser = script_parser(docstring)
    add_settings(parser, DataSettings, *settings_classes, Evaluation)
    return parser


def train_and_measure(
    name, run, evaluation, config, steps, build, *, data=None, regimes=None, privileges="none", ablation="none", variant=None,
    folder="", made_from=None, protocol=None, prompted=None, watch=None, volatile=(), facts=None, save=None,
    usual_warmup=Evaluation.warmup_episodes, few_shot_variant=None,
):  # fmt: skip
    """Train a method (or go on with it), measure it on the test tasks, and write one result file per regime.

    The learning curve is always that of the test (or validation) tasks; with `fresh` the final figures are those of the fresh
    tasks, and their files stand apart.

    Args:
        name: the method. run: RunSettings. evaluation: Evaluation. config: the resolved settings, saved beside all artifacts.
        steps: total updates. build: function TrainingData -> Method. data: TrainingData, where it is open already.
        regimes: {"few_shot": N, "zero_shot": 0}: warm-up episodes of each result; those two by default.
        privileges, ablation, variant: of the result, see `write_result`. folder: of the weights beside others of this method.
        made_from: {name: hash} of what the training read beside the dataset.
        protocol: StrictProtocol, or what stands in its place. prompted: function step -> whether warm-up episodes make sense yet.
        watch: see `evaluate`, for the first regime. volatile: more settings that a resumed run may change.
        facts: function Method -> further facts of the result files.
        save: called with the Method and its folder before training: writes what acting needs beside the weights.
        usual_warmup: warm-up episodes of the few-shot row; with another number of them it is a variant, a row of its own.
        few_shot_variant: in place of variant for the few-shot result: with the settings that a first episode does not know.
    Returns the paths of the result files. Raises UserError.
    """
    if evaluation.fresh:
        check_fresh(run, protocol)
    data = data or TrainingData(run)
    regimes = regimes or {"few_shot": evaluation.warmup_episodes, "zero_shot": 0}
    protocol = protocol or StrictProtocol(run, evaluation, data.test_tasks)
    made_from = {"dataset_sha256": data.sha256, **(made_from or {})}
    label = f"{name}{run.suffix}" + ("" if ablation == "none" else f"-{ablation}")
    path = policy_directory(run, label, folder)
    if evaluation.eval_only and not (path / "state.pt").exists():
        raise UserError(f"no trained policy in {path}: run the same command without --eval_only first")
    tasks = protocol.final_tasks
    reference = reference_levels(run.env, data.environment, tasks, data.dataset)  # what fails fails before training
    method = build(data)
    with run_directory(path, {**config, **made_from}, run.resume or evaluation.eval_only, (*VOLATILE, *volatile)) as directory:
        if save:
            save(method, directory)
        parts = {**method.parts, **protocol.parts}
        loop = Loop(directory, steps, evaluation.eval_every, parts, method.weights, run.tensorboard)
        if evaluation.eval_only and loop.step < steps:
            print(f"note: this policy was trained for {loop.step} of {steps} steps")
        elif not evaluation.eval_only:
            train(loop, method, run, evaluation, data, protocol, max(regimes.values()), prompted)
        for key, module in method.weights.items():
            module.load_state_dict(load_tensors(directory / f"{key}.safetensors"))
        if not save and hasattr(method, "known") and distributed.leads():
            save_known(directory, name, method.known)
        written = []
        for number, (regime, warmup) in enumerate(regimes.items()):
            named = dict(variant or {})
            if regime == "few_shot":
                other = evaluation.warmup_episodes != usual_warmup
                named = dict(few_shot_variant or named) | ({"warmup_episodes": evaluation.warmup_episodes} if other else {})
            keep = 3 if data.episodes.observations.shape[-1] == 2 else 0  # paths in the plane can be drawn
            measured = protocol.final(method.agent(warmup), warmup, keep, watch if number == 0 else None)
            if not distributed.leads():
                continue
            written.append(
                write_result(
                    run.output_dir, run.env_type, run.data_quality, method=name, recipe=run.recipe, ablation=ablation,
                    regime=regime, protocol=protocol.name, privileges=privileges, seed=run.seed, task_ids=tasks,
                    measured=measured, reference=reference, curve=columns(loop.curve),
                    task_parameters=trajectories.task_parameters(data.environment, tasks),
                    training=training_facts(loop, method.weights), made_from=made_from, config=config, validation=run.validation,
                    fresh=evaluation.fresh, variant=named, directory=directory, **(facts(method) if facts else {}),
                )
            )  # fmt: skip
            report(label, regime, protocol.name, measured, reference, written[-1])
        first = read_json(directory / "config.json")
        as_trained = all(first.get(key) == config.get(key) for key in (*volatile, "warmup_episodes"))  # measured as it says
        if distributed.leads() and as_trained and not evaluation.fresh:
            note_results(directory, run.output_dir, written)
    print(f"policy in {directory}; next: {report_command(Path(run.output_dir) / 'results')}")
    return written


def note_results(directory, output_dir, paths):
    """Add result files to results.json of the run's folder: whoever exports the policy finds what was measured of it."""
    file = directory / "results.json"
    known = read_json(file) if file.exists() else {}
    write_json(file, known | {path.parent.name: path.relative_to(output_dir).as_posix() for path in paths})


def check_fresh(run, protocol):
    """Whether the fresh tasks can be measured on. Raises UserError."""
    if not run.env.fresh_tasks:
        raise UserError(f"--fresh: {run.env_type} has no fresh tasks (fresh_tasks of its settings file): leave it out")
    if run.validation:
        raise UserError("--fresh is for final figures, --validation for choosing: give one of them")
    if protocol is not None:
        raise UserError(f"--fresh: protocol {protocol.name} needs data of the tasks, and of fresh ones there are none")


def train(loop, method, run, evaluation, data, protocol, warmup, prompted=None):
    """Train to the last step; at due steps measure five training tasks and the test (or validation) tasks closed loop."""
    name = "validation_return" if run.validation else "test_return"
    for step in loop.steps():
        losses = method.update(step)
        loop.loss = losses["loss"]
        if loop.due:
            with loop.measuring():
                agent, episodes = method.agent(warmup), warmup if prompted is None or prompted(step) else 0
                seen = evaluate(agent, run.env, data.train_tasks[:5], evaluation.curve_episodes, episodes, run.seed)
                new = protocol.curve(agent, episodes)
            scalars = {key: round(float(value), 6) for key, value in losses.items()}
            loop.record(**scalars, train_return=mean_return(seen), **{name: mean_return(new)})


def training_facts(loop, modules):
    """What the training cost, for the result file. modules: {name: module} of what was trained."""
    parameters = sum(value.numel() for module in modules.values() for value in module.parameters())
    facts = {"gradient_steps": loop.step, "wall_clock_s": round(loop.seconds, 1), "parameters": parameters}
    return facts if distributed.size() == 1 else {**facts, "processes": distributed.size()}


def columns(curve):
    """Records of a loop -> {series: list}, gradient_steps first."""
    names = {name: None for record in curve for name in record if name != "step"}
    return {"gradient_steps": [record["step"] for record in curve]} | {
        name: [record.get(name) for record in curve] for name in names
    }


def mean_return(result):
    return float(np.mean(result["returns"]))


def report(label, regime, protocol, measured, reference, path):
    """One line per result; the reference levels stand beside it."""
    beside = ", ".join(f"{name} {np.mean(values):.4g}" for name, values in reference.items() if values)
    warmups = measured.get("warmup_returns")
    by_episode = f" (warm-up episodes {', '.join(f'{v:.4g}' for v in np.mean(warmups, (0, 1)))})" if warmups else ""
    success = f", success {np.mean(measured['success']):.2f}" if "success" in measured else ""
    print(f"{label} {regime} {protocol}: return {mean_return(measured):.6g}{success}{by_episode}; {beside}")
    print(f"  written to {path}")
