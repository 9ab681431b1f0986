"""What the BOReL scripts share: settings, folders, agents made from settings."""

import dataclasses
from pathlib import Path

from baselines.borel.agents import DQN, SAC
from baselines.borel.problem import Problem
from src.evaluation.method import RunSettings
from src.run import command_line
from src.run.command_line import find_section, script_parser
from src.run.config import CONFIG_DIR, known_env_types, read_yaml, recipe_layers
from src.run.directory import run_directory
from src.run.errors import UserError
from src.run.flags import fraction, nonnegative_float, plain_name, positive_float, positive_fraction, positive_int
from src.run.settings import add_settings, pick, setting

QUALITY = "log"  # of the data: complete logs of training
FOLDERS = {  # by which flag a script names the main folder of data, a data set, replays, the main folder of belief models
    "train_single_agent": {"main": "main_data_dir", "data": "save_dir"},
    "convert": {"main": "main_data_dir", "data": "save_dir"},
    "hindsight_data_collection": {"main": "main_data_dir", "data": "data_dir", "replays": "replaying_data_dir"},
    "train_vae_offline": {"main": "main_data_dir", "data": "data_dir", "replays": "replaying_data_dir", "models": "save_dir"},
    "train_offline_agent": {"main": "main_data_dir", "data": "data_dir", "replays": "replaying_data_dir", "models": "vae_dir"},
    "online_training": {},
}
USUAL = {"main": "datasets", "models": "saves"}  # where the flag is not given; names are None
LEARNING = ("train_single_agent", "train_vae_offline", "train_offline_agent", "online_training")  # have settings by environment
VOLATILE = ("resume", "tensorboard", "threads", "output_dir", "device")  # settings that may change when a run is resumed


@dataclasses.dataclass(frozen=True)
class Common:
    """problem and folders"""

    max_rollouts_per_task: int = setting(2, "K, episodes of a roll-out", positive_int)
    main_data_dir: str = setting(USUAL["main"], "main folder of the data, below --output_dir", flags=("--main-save-dir",))
    agent_log_dir: str = setting("saves", "main folder of training logs and checkpoints, below --output_dir")


@dataclasses.dataclass(frozen=True)
class Starts:
    """starts"""

    modify_init_state_dist: bool = setting(True, "start episodes at random places")
    on_circle_init_state: bool = setting(True, "False: not where the goals may be")

    def of(self, problem):
        """Name of the start distribution. Raises UserError, see `Problem.start`."""
        return problem.start(self.modify_init_state_dist, self.on_circle_init_state)


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """agent"""

    policy: str = setting("sac", "dqn for discrete actions, sac for others", choices=["dqn", "sac"])
    hidden_layers: tuple = setting((128, 128), "widths, of critics and policy", positive_int, nargs="+")
    batch_size: int = setting(256, "transitions per task in an update", positive_int)
    critic_lr: float = setting(3e-4, "learning rate of Adam for the critics (and DQN)", positive_float)
    actor_lr: float = setting(3e-4, "learning rate of Adam for the policy of SAC", positive_float)
    gamma: float = setting(0.99, "discount", fraction)
    soft_target_tau: float = setting(0.005, "share of the target network replaced per update", positive_fraction)
    entropy_alpha: float = setting(0.2, "fixed weight of the entropy (SAC)", nonnegative_float)
    automatic_entropy_tuning: bool = setting(False, "learn the weight of the entropy")
    double_dqn: bool = setting(False, "DQN without its overestimation (ours)")
    clip_grad_value: float | None = setting(None, "largest absolute gradient (default: no limit)", positive_float)

    def check(self, problem):
        """Raises UserError where the agent does not fit the Problem, or its settings contradict each other."""
        if (self.policy == "dqn") != problem.discrete:
            kind = "discrete" if problem.discrete else "continuous"
            raise UserError(f"--policy {self.policy} does not fit the {kind} actions of {problem.env.env_type}")
        if self.automatic_entropy_tuning and not self.entropy_alpha:
            raise UserError("--automatic-entropy-tuning True starts from --entropy-alpha and cannot leave 0: give one above 0")

    def make(self, agents, problem, observation_size, generator, device, cql=0.0):
        """A stack of DQN or SAC agents."""
        shape = agents, observation_size, problem.action_size, self.hidden_layers, generator
        common = {"gamma": self.gamma, "tau": self.soft_target_tau, "critic_lr": self.critic_lr, "device": device}
        common["clip_grad_value"] = self.clip_grad_value
        if self.policy == "dqn":
            return DQN(*shape, **common, double=self.double_dqn)
        entropy = {"alpha": self.entropy_alpha, "automatic_alpha": self.automatic_entropy_tuning}
        return SAC(*shape, **common, **entropy, actor_lr=self.actor_lr, cql=cql)

    @property
    def learning_rates(self):
        """The flags of the learning rates, as an error names them."""
        return "--critic-lr" if self.policy == "dqn" else "--critic-lr or --actor-lr"


@dataclasses.dataclass(frozen=True)
class MetaEvaluation:
    """evaluation and results"""

    eval_deterministic: bool = setting(True, "evaluate the mean policy")
    eval_rollouts: int = setting(
        1, "roll-outs per evaluation task; more than one where starts or actions are random", positive_int
    )
    method: str | None = setting(None, "name in tables (default: borel)", plain_name)
    results_log_dir: str = setting("results", "main folder of result files, below --output_dir")


@dataclasses.dataclass(frozen=True)
class BorelRun(RunSettings):
    """What a run of a stage is. folders: {role: folder, or its name} of FOLDERS. saved: the settings that config.json holds."""

    problem: Problem | None = None
    folders: dict | None = None
    agent_log_dir: str = "saves"
    saved: dict | None = None

    def directory(self, main, *names):
        """Folder of logs and checkpoints: <output_dir>/<main>/<env_type>/log/borel/..."""
        return Path(self.output_dir, main, self.env_type, QUALITY, "borel", *names)

    def data(self, name):
        """The folder of a data set: <output_dir>/<main data folder>/<env_type>/<name>."""
        return Path(self.output_dir, self.folders["main"], self.env_type, name)

    @property
    def logs_name(self):
        """Of the data set of logs: the one given, else "log" with the recipe's suffix."""
        return self.folders["data"] or QUALITY + self.suffix

    @property
    def logs(self):
        """Where the logs lie."""
        return self.data(self.logs_name)

    @property
    def replays_name(self):
        """Of the replays, in the same way."""
        return self.folders["replays"] or "replay" + self.suffix

    @property
    def replays(self):
        """Where the replays lie."""
        return self.data(self.replays_name)


def borel_parser(docstring, kinds):
    """A parser with the flags that all the scripts have, and those of the settings classes `kinds`."""
    parser = script_parser(docstring)
    parser.set_defaults(device="cpu")  # these networks are too small for a GPU to pay
    parser.add_argument("--log-tensorboard", dest="tensorboard", action="boolean", default=True, help="as --tensorboard")
    add_settings(parser, Common, *kinds, hyphens=True)
    return parser


def parse(parser, script, kinds, argv, unsaved=()):
    """[BorelRun, objects of the settings classes `kinds` in their order]. Raises UserError.

    unsaved: flags that decide nothing, and do not stand in config.json.
    """
    args = command_line.parse_args(parser, f"baselines.borel.{script}", argv)
    require_settings(args.env, args.config, script)
    chosen = [pick(kind, args) for kind in kinds]
    problem = Problem(args.env, args.max_rollouts_per_task)
    for agent in (settings for settings in chosen if isinstance(settings, AgentSettings)):
        agent.check(problem)
    folders = {role: getattr(args, flag) for role, flag in FOLDERS[script].items()}
    saved = command_line.settings(args, exclude=unsaved)
    return [pick(BorelRun, args, problem=problem, folders=folders, saved=saved), *chosen]


def require_settings(env, own, script):
    """Defaults of the code would pass for an environment's settings; files of one's own may rely on them.

    Raises UserError for a settings file of configs/ without a section of the script (of BOReL, for a script that learns nothing),
    and for episodes that may end on their own: a roll-out is K of a fixed length. own: whether --config gave the file.
    """
    if env.terminates:
        raise UserError(
            f"the episodes of {env.env_type} may end on their own, those of BOReL have a fixed length: choose another"
        )
    name = f"baselines.borel.{script}" if script in LEARNING else "baselines.borel"
    if own or find_section(read_yaml(CONFIG_DIR / f"{env.env_type}.yaml"), name):
        return
    known = [known for known in known_env_types() if find_section(read_yaml(CONFIG_DIR / f"{known}.yaml"), name)]
    hint = "; the point_robot of the original is point_robot_dense" if env.env_type == "point_robot" else ""
    missing = f"{env.env_type} has no settings of BOReL's {script}"
    raise UserError(f"{missing}: choose from {', '.join(known)}, or give --config FILE{hint}")


def dependent_run(run, directory, made_from, volatile=VOLATILE, elsewhere=None):
    """`run_directory` of a stage that reads what other stages made; made_from: digests of that, checked like settings."""
    return run_directory(directory, {**run.saved, **made_from}, run.resume, volatile, elsewhere)


def decay_learning_rates(optimizers, iteration, total):
    """Learning rates fall linearly: those given × (1 − iteration / total), a pure function of the iteration."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - iteration / total)


def collect_command(run):
    """The command that makes the logs of all training tasks: by agents of their own, where these have settings."""
    section = find_section(read_yaml(Path(run.config or CONFIG_DIR / f"{run.env_type}.yaml")), "baselines.borel") or {}
    if section and "train_single_agent" not in section:
        return next_command(run, "convert", "--dataset", "expert")
    low, high = run.env.train_tasks
    return next_command(run, "train_single_agent", "--task-id-start", str(low), "--task-id-end", str(high))


def next_command(run, script, *extra):
    """The command of a stage that follows or is missing, with the folders that this one was given."""
    words = []
    for role, flag in FOLDERS[script].items():
        value = run.folders.get(role)
        if value not in (None, USUAL.get(role)):
            words += [f"--{flag.replace('_', '-')}", value]
    return command_line.next_command(run, f"-m baselines.borel.{script}", *extra, *words)


def configured(run, script, key):
    """What the settings file, with this run's recipe, says of another script's flag; None where it sets nothing."""
    path = Path(run.config or CONFIG_DIR / f"{run.env_type}.yaml")
    document = read_yaml(path)
    recipe = [] if run.recipe == "paper" else recipe_layers(path, document, run.recipe)
    layers = [document, *(layer for _, layer, _ in recipe)]
    found = [(find_section(layer, f"baselines.borel.{script}") or {}).get(key) for layer in reversed(layers)]
    return next((value for value in found if value is not None), None)
