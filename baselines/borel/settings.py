"""What the BOReL scripts share: flags, folders, agents made from flags."""

import sys
from pathlib import Path

from baselines.borel.agents import DQN, SAC
from baselines.borel.problem import Problem
from src.run import config
from src.run.config import (
    CONFIG_DIR,
    find_section,
    fraction,
    known_env_types,
    nonnegative_float,
    positive_float,
    positive_int,
    read_yaml,
    script_parser,
)
from src.run.directory import run_directory
from src.run.errors import UserError
from src.run.files import read_json

QUALITY = "log"  # of the data: complete logs of training
FOLDERS = {  # by which flag a script names the main folder of data, a data set, replays, the main folder of belief models
    "train_single_agent": {"main": "main_data_dir", "data": "save_dir"},
    "convert": {"main": "main_data_dir", "data": "save_dir"},
    "hindsight_data_collection": {"main": "main_data_dir", "data": "data_dir", "replays": "replaying_data_dir"},
    "train_vae_offline": {"main": "main_data_dir", "data": "data_dir", "replays": "replaying_data_dir", "models": "save_dir"},
    "train_offline_agent": {"main": "main_data_dir", "data": "data_dir", "replays": "replaying_data_dir", "models": "vae_dir"},
}
USUAL = {"main": "datasets", "models": "saves"}  # where the flag is not given; names are None
LEARNING = ("train_single_agent", "train_vae_offline", "train_offline_agent", "online_training")  # have settings by environment
VOLATILE = ("resume", "tensorboard", "threads", "output_dir", "device")  # settings that may change when a run is resumed


def borel_parser(docstring):
    """A parser with the flags that all five scripts have."""
    parser = script_parser(docstring)
    parser.set_defaults(device="cpu")  # these networks are too small for a GPU to pay
    parser.add_argument("--log-tensorboard", dest="tensorboard", action="boolean", default=True, help="as --tensorboard")
    problem = parser.add_argument_group("problem")
    problem.add_argument("--max-rollouts-per-task", type=positive_int, default=2, help="K, episodes of a roll-out")
    files = parser.add_argument_group("folders, below --output_dir")
    files.add_argument("--main-data-dir", "--main-save-dir", default=USUAL["main"], help="main folder of the data")
    files.add_argument("--agent-log-dir", default="saves", help="main folder of training logs and checkpoints")
    return parser


def add_agent_flags(parser, policy, batch_size):
    """Flags of DQN and SAC; `policy` and `batch_size` are defaults."""
    agent = parser.add_argument_group("agent")
    agent.add_argument("--policy", choices=["dqn", "sac"], default=policy, help="dqn for discrete actions, sac for others")
    agent.add_argument("--hidden-layers", type=positive_int, nargs="+", default=[128, 128], help="widths, of critics and policy")
    agent.add_argument("--batch-size", type=positive_int, default=batch_size, help="transitions per task in an update")
    agent.add_argument("--critic-lr", type=positive_float, default=3e-4, help="learning rate of Adam for the critics (and DQN)")
    agent.add_argument("--actor-lr", type=positive_float, default=3e-4, help="learning rate of Adam for the policy of SAC")
    agent.add_argument("--gamma", type=fraction, default=0.99, help="discount")
    agent.add_argument("--soft-target-tau", type=fraction, default=0.005, help="share of the target network replaced per update")
    agent.add_argument("--entropy-alpha", type=nonnegative_float, default=0.2, help="fixed weight of the entropy (SAC)")
    agent.add_argument("--automatic-entropy-tuning", action="boolean", default=False, help="learn the weight of the entropy")
    agent.add_argument("--double-dqn", action="boolean", default=False, help="DQN without its overestimation (ours)")
    agent.add_argument("--clip-grad-value", type=positive_float, help="largest absolute gradient (default: no limit)")
    agent.add_argument("--bootstrap-rollout-end", action="boolean", default=True,
                       help="value the observation after a roll-out's last step; False: nothing follows it")  # fmt: skip
    return agent


def parse(parser, script, argv):
    """The namespace of src/run/config.py, and the Problem in `problem`. Raises UserError."""
    args = config.parse_args(parser, f"baselines.borel.{script}", argv)
    require_settings(args, script)
    args.problem, args.script = Problem(args.env, args.max_rollouts_per_task), script
    if hasattr(args, "policy") and (args.policy == "dqn") != args.problem.discrete:
        kind = "discrete" if args.problem.discrete else "continuous"
        raise UserError(f"--policy {args.policy} does not fit the {kind} actions of {args.env_type}")
    if hasattr(args, "policy") and args.automatic_entropy_tuning and not args.entropy_alpha:
        raise UserError("--automatic-entropy-tuning True starts from --entropy-alpha and cannot leave 0: give one above 0")
    return args


def require_settings(args, script):
    """Defaults of the code would pass for an environment's settings; files of one's own may rely on them.

    Raises UserError for a settings file of configs/ without a section of the script (of BOReL, for a script that learns nothing),
    and for episodes that may end on their own: a roll-out is K of a fixed length.
    """
    if args.env.terminates:
        raise UserError(
            f"the episodes of {args.env_type} may end on their own, those of BOReL have a fixed length: choose another"
        )
    name = f"baselines.borel.{script}" if script in LEARNING else "baselines.borel"
    if args.config or find_section(read_yaml(CONFIG_DIR / f"{args.env_type}.yaml"), name):
        return
    known = [known for known in known_env_types() if find_section(read_yaml(CONFIG_DIR / f"{known}.yaml"), name)]
    hint = "; the point_robot of the original is point_robot_dense" if args.env_type == "point_robot" else ""
    missing = f"{args.env_type} has no settings of BOReL's {script}"
    raise UserError(f"{missing}: choose from {', '.join(known)}, or give --config FILE{hint}")


def resolved(args):
    """The settings as saved in config.json."""
    return config.settings(args, exclude=("problem", "script"))


def dependent_run(args, directory, config, made_from, volatile=VOLATILE, elsewhere=None):
    """`run_directory` of a stage that reads what other stages made; made_from: digests of that, checked like settings.

    A run from before digests were recorded lacks them: it is taken as it is, with a note.
    """
    path, unknown = directory / "config.json", []
    if args.resume and path.exists():
        old = read_json(path)
        unknown = [key for key in made_from if isinstance(old, dict) and key not in old]
    if unknown:
        note = "was made before its inputs were recorded, so they may have changed since; --no-resume makes it again"
        print(f"note: the run in {directory} {note}", file=sys.stderr)
    return run_directory(directory, {**config, **made_from}, args.resume, (*volatile, *unknown), elsewhere)


def make_agent(args, agents, observation_size, generator, cql=0.0):
    """A stack of DQN or SAC agents on the chosen device."""
    shape = agents, observation_size, args.problem.action_size, args.hidden_layers, generator
    common = {"gamma": args.gamma, "tau": args.soft_target_tau, "critic_lr": args.critic_lr, "device": args.device}
    common["clip_grad_value"] = args.clip_grad_value
    if args.policy == "dqn":
        return DQN(*shape, **common, double=args.double_dqn)
    entropy = {"alpha": args.entropy_alpha, "automatic_alpha": args.automatic_entropy_tuning}
    return SAC(*shape, **common, **entropy, actor_lr=args.actor_lr, cql=cql)


def decay_learning_rates(optimizers, iteration, total):
    """Learning rates fall linearly: those given × (1 − iteration / total), a pure function of the iteration."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - iteration / total)


def run_folder(args, main, *names):
    """Folder of logs and checkpoints: <output_dir>/<main>/<env_type>/log/borel/..."""
    return Path(args.output_dir, main, args.env_type, QUALITY, "borel", *names)


def data_name(args, name):
    """The folder name of a data set: `name` where given, else "log" with the recipe's suffix."""
    return name or QUALITY + args.suffix


def collect_command(args):
    """The command that makes the logs of all training tasks."""
    low, high = args.env.train_tasks
    extra = ("--task-id-start", str(low), "--task-id-end", str(high))
    return next_command(args, "train_single_agent", *extra)


def next_command(args, script, *extra):
    """The command of a stage that follows or is missing, with the folders that this one was given."""
    own, words = FOLDERS[args.script], []
    for role, flag in FOLDERS[script].items():
        value = getattr(args, own[role]) if role in own else None
        if value not in (None, USUAL.get(role)):
            words += [f"--{flag.replace('_', '-')}", value]
    return config.next_command(args, f"-m baselines.borel.{script}", *extra, *words)


def configured(args, script, key):
    """What the settings file, with this run's recipe, says of another script's flag; None where it sets nothing."""
    path = config.find_config(args)
    document = read_yaml(path)
    recipe = [] if args.recipe == "paper" else config.recipe_layers(path, document, args.recipe)
    layers = [document, *(layer for _, layer, _ in recipe)]
    found = [(find_section(layer, f"baselines.borel.{script}") or {}).get(key) for layer in reversed(layers)]
    return next((value for value in found if value is not None), None)


def learning_rates(args):
    """The flags of an agent's learning rates, as an error names them."""
    return "--critic-lr" if args.policy == "dqn" else "--critic-lr or --actor-lr"
