"""Stage 4: train Meta-DT on a dataset and its world model, then measure it on tasks it never saw.

    python train_meta_dt.py --env_type point_robot --recipe fast --data_quality medium
    python train_meta_dt.py --env_name AntDir-v0 --zero_shot False --data_quality medium
    python train_meta_dt.py --env_name AntDir-v0 --zero_shot True --data_quality medium

Few-shot (the default): prompts in training; tested after warm-up episodes of the same frozen agent. Zero-shot: no prompts at all.
A recipe without prompts, as `fast`, makes one policy that is measured in both ways.
Point-Robot on two cores: the fast recipe about two minutes, the paper's 100,000 steps about three hours. The same command
continues an interrupted run; --eval_only measures a finished one again, for example with other --warmup_episodes.
Writes saves/<env_type>/<quality>/<method>/<regime>/seed_<s>/ and a file under results/. Next: python -m tools.report.
"""

import dataclasses
import functools
from pathlib import Path

from envs.render import record
from src.evaluation.exploration import Exploration
from src.evaluation.method import Evaluation, RunSettings, TrainingData, method_parser, train_and_measure
from src.evaluation.paper_protocol import PaperProtocol
from src.models.load import open_world_model
from src.models.meta_dt import ModelSettings
from src.models.meta_dt_agent import Adaptation
from src.models.meta_dt_training import Imitation, MetaDTTraining, Prompting
from src.models.reward_model import make_rewards
from src.run import distributed
from src.run.command_line import is_given, parse_args, settings
from src.run.devices import keep_memory
from src.run.environment import check_camera, has_camera
from src.run.errors import UserError, main_guard
from src.run.files import digest
from src.run.loop import Optimisation
from src.run.settings import ablation_name, changed, pick, setting

# settings of the evaluation that decide what is measured: where one differs from the recipe's, the result says so
MEASURED = ("warmup_episodes", "explore", "explore_steps", "context", "target_return")
# settings that a resumed or re-evaluated run may change, beside those of every method
VOLATILE = ("protocol", "render", "zero_shot", "world_model", *MEASURED)  # world_model: its SHA-256 binds the run
ABLATIONS = {
    ("context", "none"): "no_context",
    ("prompt_select", "argmax"): "argmax_prompt",
    ("prompt_select", "sample"): "sampled_prompt",
    ("prompt_select", "random"): "random_prompt",
    ("prompt_select", "last"): "last_prompt",
    ("prompt_select", "none"): "no_prompt",
    ("true_rewards", True): "true_rewards",
    ("ignore_returns", True): "ignore_returns",
    ("window_time", True): "window_time",
    ("window_time", False): "episode_time",
    ("dropout", 0.0): "no_dropout",
    ("dropout", 0.1): "dropout",
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """training and test"""

    zero_shot: bool = setting(False, "train and test without prompts")
    world_model: str | None = setting(None, "its folder (default: that of this environment, quality, recipe, seed)")
    precision: str = setting("auto", "of the matrix products", choices=["auto", "float32", "bfloat16"])
    protocol: str = setting(
        "strict", "paper: target and prompts as the official code, no exploration", choices=["strict", "paper"]
    )
    render: str | None = setting(None, "film the first evaluation episode on the first test task into this file.gif")


def make_parser():
    return method_parser(__doc__, Stage, ModelSettings, Optimisation, Imitation, Prompting, Adaptation, Exploration)


@main_guard
def main(argv=None):
    parser = make_parser()
    args = parse_args(parser, "train_meta_dt", argv)
    args.prompt_start_step = prompt_start(parser, args, argv)
    stage, run, evaluation = pick(Stage, args), pick(RunSettings, args), pick(Evaluation, args)
    model, optimisation, imitation, prompting, adaptation, exploration = (
        pick(kind, args) for kind in (ModelSettings, Optimisation, Imitation, Prompting, Adaptation, Exploration)
    )
    paper = stage.protocol == "paper"
    exploration = Exploration() if paper else exploration
    prompts = not stage.zero_shot and adaptation.prompt_select != "none"
    prompts_of_recipe = parser.get_default("prompt_select")
    if stage.zero_shot and adaptation.prompt_select != prompts_of_recipe:
        raise UserError(f"--prompt_select {adaptation.prompt_select} has no effect with --zero_shot True: there are no prompts")
    check(run, stage, model, optimisation, imitation, prompting, adaptation, exploration, prompts)
    keep_memory()
    distributed.join(run.device)
    run.env.make()  # refused first where it cannot be used
    world_model, context_config = open_world_model(run, stage.world_model)
    data = TrainingData(run)
    if data.sha256 != context_config.get("dataset_sha256"):
        raise UserError("the world model was trained on another version of this dataset: run train_context.py --no-resume again")

    rewards = make_rewards(run, data, imitation.true_rewards) if imitation.other_tasks != "none" else None

    def build(data):
        return MetaDTTraining(
            run, data, world_model, model=model, optimisation=optimisation, imitation=imitation, prompting=prompting,
            adaptation=adaptation, exploration=exploration, prompts=prompts, rewards=rewards, precision=stage.precision,
            heads=[context_config.get(f"{head}_weight") != 0 for head in ("reward", "state")],
        )  # fmt: skip

    protocol = PaperProtocol(run, evaluation, data, prompts) if paper else None
    regimes = {"zero_shot": 0} if stage.zero_shot else {"few_shot": evaluation.warmup_episodes}
    if not prompts and prompts_of_recipe == "none" and not stage.zero_shot:  # one policy serves both
        regimes["zero_shot"] = 0
    ablation, variants = changes(parser, args)
    if evaluation.eval_only and "few_shot" in regimes and variants["few_shot"] and not variants["zero_shot"]:
        regimes.pop("zero_shot", None)  # it is the recipe's own row
    ablation += [f"context_{context_config['ablation']}"] if context_config.get("ablation") else []
    others = {"recipe": f"context_of_{context_config.get('recipe')}", "seed": f"context_of_seed_{context_config.get('seed')}"}
    ablation += [name for key, name in others.items() if context_config.get(key) != getattr(run, key)]
    told = context_config.get("decode") == "relabelled" and "reward_model_sha256" not in context_config
    privileges = "reward function" if told or (rewards and rewards.privileges != "none") else "none"
    learned = rewards.facts if rewards else {}
    return train_and_measure(
        "meta_dt", run, evaluation, settings(args), optimisation.steps, build, data=data, regimes=regimes,
        privileges=privileges, ablation=ablation_name(ablation),
        variant=variants["zero_shot"], few_shot_variant=variants["few_shot"],
        folder=("few_shot-paper" if paper else "few_shot") if prompts else "zero_shot",
        made_from={"world_model_sha256": digest(world_model.state_dict()), **(rewards.made_from if rewards else {})},
        protocol=protocol, usual_warmup=evaluation.warmup_episodes,  # another number of them is among MEASURED
        prompted=(lambda step: step > prompting.prompt_start_step) if prompts else None,
        watch=functools.partial(film, run.env, stage.render) if stage.render else None,
        volatile=VOLATILE if prompts else (*VOLATILE, "prompt_select"),
        save=lambda method, directory: method.save(directory, next(iter(regimes.values()))),
        facts=lambda method: {"target_return": protocol.targets if paper else method.target} | learned,
    )  # fmt: skip


def changes(parser, args):
    """What tells a row from the recipe's: ([names of what is trained otherwise], {regime: {setting of the measurement: value}}).

    Zero-shot is a first episode: how many there are, what they carry, and the noise of those after a probe change nothing in it.
    """
    recipe = {key: parser.get_default(key) for key, _ in (*ABLATIONS, *((key, None) for key in MEASURED))}
    ablation = [name for (key, value), name in ABLATIONS.items() if getattr(args, key) == value != recipe[key]]
    ablation += changed(pick(Imitation, args), parser.get_default, without=["true_rewards"])
    paper = args.protocol == "paper"
    idle = ["warmup_episodes"] * (args.zero_shot or paper) + ["explore", "explore_steps"] * paper
    measured = {key: getattr(args, key) for key in MEASURED if key not in idle}
    few_shot = {key: value for key, value in measured.items() if value != recipe[key] and (key, value) not in ABLATIONS}
    later = ["warmup_episodes"] + ["context"] * (recipe["context"] != "none") + ["explore_steps"] * (args.explore == "probe")
    return ablation, {"few_shot": few_shot, "zero_shot": {key: value for key, value in few_shot.items() if key not in later}}


def prompt_start(parser, args, argv=None):
    """The step after which prompts come: where --steps is lowered and nothing said, the share of them that the recipe has."""
    steps, start = parser.get_default("steps"), parser.get_default("prompt_start_step")
    if args.steps >= steps or is_given("prompt_start_step", argv):
        return args.prompt_start_step
    return start * args.steps // steps


def check(run, stage, model, optimisation, imitation, prompting, adaptation, exploration, prompts):
    """Settings that contradict each other. Raises UserError."""
    horizon = run.env.max_episode_steps
    if imitation.imitate == "steps" and imitation.top_share == 1:
        raise UserError("--imitate steps has no effect with --top_share 1, which imitates every step: lower it")
    if imitation.true_rewards and imitation.other_tasks == "none":
        raise UserError("--true_rewards has no effect without --other_tasks: give both")
    if model.width % model.heads:
        raise UserError(f"--width {model.width} must be a multiple of --heads {model.heads}")
    if prompts and prompting.prompt_start_step >= optimisation.steps:
        raise UserError(
            f"--prompt_start_step {prompting.prompt_start_step} is not below --steps {optimisation.steps}: the policy would be "
            "tested with prompts that it never saw; lower it, or pass --zero_shot True"
        )
    if model.ignore_returns and (adaptation.target_return != "auto" or stage.protocol == "paper"):
        asks = "--protocol paper" if stage.protocol == "paper" else "--target_return"
        raise UserError(f"{asks} asks for a return, and --ignore_returns True for none: leave one of them out")
    if stage.protocol == "paper":
        own = (adaptation.context == "tried", adaptation.prompt_select == "none" and not stage.zero_shot)
        for needs, flag in zip(own, ("--context running", "--prompt_select argmax"), strict=True):
            if needs:
                raise UserError(f"--protocol paper has no warm-up episodes of its own: pass {flag}")
        if adaptation.target_return != "auto":
            raise UserError("--protocol paper has a target of its own (the test task's best return): leave --target_return out")
    if exploration.explore == "none" and exploration.explore_steps:
        raise UserError("--explore_steps has no effect with --explore none: pass --explore noise or probe")
    if exploration.explore == "noise" and not exploration.explore_steps:
        raise UserError("--explore noise has no effect without --explore_steps: give their number")
    if exploration.explore_steps >= horizon:
        raise UserError(f"--explore_steps {exploration.explore_steps} leaves nothing of an episode ({horizon} steps)")
    if model.prompt_length > horizon:
        raise UserError(
            f"--prompt_length {model.prompt_length} is longer than an episode ({horizon} steps): give --prompt_length {horizon}"
        )
    if stage.render:
        check_film(run.env, stage)


def check_film(env, stage):
    """Whether --render can work, before anything is trained. Raises UserError."""
    if stage.protocol == "paper" or not stage.render.endswith(".gif"):
        raise UserError("--render films the strict protocol, into a file that ends in .gif")
    if not Path(stage.render).resolve().parent.is_dir():
        raise UserError(f"--render {stage.render}: there is no such folder; make it first")
    if not has_camera(env.make()):
        raise UserError(f"{env.env_name} has no camera: leave --render out")
    check_camera(env, "leave --render out")


def film(env, path, task_ids, seeds, episode):
    """Play the actions of the first row again, in front of the camera."""
    actions = iter(episode["actions"][0])
    returned = record(env.make("rgb_array"), lambda _: next(actions), path, int(task_ids[0]), int(seeds[0]))
    print(f"task {task_ids[0]}, return {returned:.4g}: {path}")


if __name__ == "__main__":
    main()
