"""Meta-World's task sets (ML1): a robot arm does one thing with an object, where to is not told.

Needs the package metaworld, an optional install (requirements-metaworld.txt); nothing else imports this module. A settings file
names a set by `options: {name: push}`; docs/meta_world.md tells which there are and what they hide. Observation (39): hand (3),
gripper opening, object (3 and a quaternion), second object (7); the same one step before; the goal's place (3), which is zero.
Action (4) in [-1, 1]: the hand's displacement in centimetres, and the gripper's effort. 500 steps of 12.5 ms, never terminates.
Start: a function of the task alone. Reward: 0 to 10, envs/meta_world_rewards.py.

The library (metaworld 3.1.1, MIT licence, Farama Foundation) builds the model and resets every task once; from there on rows are
stepped side by side over one shared model, with the same bits as the library gives.
Source: Meta-World (Yu et al., 2019; McLean et al., 2025).
"""

import atexit
import copy
import functools
import importlib.metadata
import math
import warnings
from dataclasses import dataclass

import gymnasium as gym
import mujoco
import numpy as np

from envs import meta_world_rewards as rewards
from envs.base import TaskBatch, TaskEnv
from envs.mujoco_env import make_renderer
from envs.tasks import TASK_DIR, write_list

HORIZON = 500  # steps
FRAME = 18  # entries of one frame: hand (3), opening, two objects of 7
OBJECT, GOAL = slice(4, 7), slice(36, 39)  # of the observation
ENTRIES = {"all": np.arange(39), "hand": np.r_[0:4, 18:22]}  # what is observed
HAND_STEP = np.float32(0.01)  # metres per unit of action; the library multiplies in float32
OBJ = ("geom_xmat", "geom", "objGeom")
TOOL_BELOW_HAND = np.array([0, 0.002, -0.045])  # metres


@dataclass(frozen=True)
class TaskSet:
    """What the batch must know of a set.

    position, rotation: field of the simulator's data, kind and name of what is observed of the object; None: no rotation.
    rewards: of envs/meta_world_rewards.py. records: what they read beyond the transition. apart: least distance of start and goal
    on the table, in metres. start: the library's name of the object's start. aim, gain: of the scripted policy as a reference
    level: what is added to the goal that it is told, and by what its actions are multiplied.
    """

    position: tuple
    rotation: tuple | None
    rewards: callable
    records: tuple = ("tcp", "pads", "object_start")
    apart: float = 0.0
    start: str = "obj_init_pos"
    aim: tuple = (0.0, 0.0, 0.0)
    gain: float = 1.0


BODY, PUCK = ("xpos", "body", "obj"), ("geom_xpos", "geom", "puck")
PUCK_TURN = ("geom_xmat", "geom", "puck")
PLATE = ("tcp", "object_start")
TOOL = tuple(-TOOL_BELOW_HAND)  # the scripted policy of Reach brings the hand to where it is told, not the tool centre
SETS = {
    "reach": TaskSet(BODY, OBJ, rewards.reach, ("tcp",), 0.15, aim=TOOL, gain=2),
    "reach-wall": TaskSet(BODY, OBJ, rewards.reach, ("tcp",), 0.15, aim=TOOL, gain=2),
    "push": TaskSet(BODY, OBJ, rewards.push, apart=0.15),
    "push-wall": TaskSet(("geom_xpos", "geom", "objGeom"), OBJ, rewards.push_wall, apart=0.15),
    "pick-place": TaskSet(BODY, OBJ, rewards.pick_place, apart=0.15),
    "soccer": TaskSet(("xpos", "body", "soccer_ball"), ("xmat", "body", "soccer_ball"), rewards.soccer, apart=0.15),
    "plate-slide": TaskSet(PUCK, PUCK_TURN, rewards.plate_slide, PLATE),
    "plate-slide-side": TaskSet(PUCK, PUCK_TURN, rewards.plate_slide_side, PLATE),
    "plate-slide-back": TaskSet(PUCK, PUCK_TURN, rewards.plate_slide_side, PLATE),
    "shelf-place": TaskSet(BODY, OBJ, rewards.shelf_place, apart=0.1),
    "pick-out-of-hole": TaskSet(BODY, ("xquat", "body", "obj"), rewards.pick_out_of_hole, apart=0.15),
    "coffee-push": TaskSet(BODY, ("geom_xmat", "geom", "mug"), rewards.coffee_push, apart=0.15),
    "sweep": TaskSet(BODY, ("xquat", "body", "obj"), rewards.sweep),
    "door-lock": TaskSet(("site_xpos", "site", "lockStartLock"), ("xquat", "body", "door_link"), rewards.door_lock),
    "window-close": TaskSet(
        ("site_xpos", "site", "handleCloseStart"), None, rewards.window_close, start="window_handle_pos_init"
    ),
    "handle-pull": TaskSet(("site_xpos", "site", "handleRight"), None, rewards.handle_pull),
    "handle-pull-side": TaskSet(("site_xpos", "site", "handleCenter"), None, rewards.handle_pull_side),
}


def library():
    """The package metaworld. Raises ImportError that says how to install it."""
    try:
        import metaworld.env_dict
        import metaworld.policies
    except ImportError:
        raise ImportError(
            "Meta-World is not installed; install it: pip install -r requirements-metaworld.txt -c constraints.txt"
        ) from None
    return metaworld


# ---------------------------------------------------------------------------------------------------------- simulator


@dataclass(frozen=True)
class Start:
    """Where a task begins: what one reset by the library left."""

    observation: np.ndarray  # (39,)
    state: np.ndarray  # mjSTATE_INTEGRATION, solver's warm start included
    bodies: np.ndarray  # (bodies, 3) positions in the model: fixtures stand elsewhere in every task
    goal: np.ndarray
    goal_sites: list  # ids of the sites that mark it
    object_start: np.ndarray
    tcp_start: np.ndarray


class Simulator:
    """The library's environment of a set, for its model and its resets. One per set and process; a model takes 21 MB."""

    def __init__(self, name):
        self.environment = library().env_dict.ALL_V3_ENVIRONMENTS[f"{name}-v3"]()
        self.environment._set_task_called = True  # what set_task does, without its pickles
        self.environment._freeze_rand_vec = True
        self.model = self.environment.model
        self._bodies = self.model.body_pos.copy()
        self._name, self._starts = name, {}

    def start(self, vector):
        """The Start of the task with this vector, made once."""
        key = np.asarray(vector, np.float64).tobytes()
        if key not in self._starts:
            self._starts[key] = self._reset(np.array(vector, np.float64))
        return self._starts[key]

    def _reset(self, vector):
        env, model = self.environment, self.model
        model.body_pos[:] = self._bodies
        env._last_rand_vec = vector
        observation, _ = env.reset()
        state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        sites = [model.site(name).id for name, _ in env._target_site_config]
        start, tcp, goal = getattr(env, SETS[self._name].start), env.init_tcp, env._target_pos
        goal, start, tcp = (np.array(values, np.float64) for values in (goal, start, tcp))  # copies: some are the simulator's own
        return Start(observation, state, model.body_pos.copy(), goal, sites, start, tcp)


simulator = functools.cache(Simulator)


class MetaWorldBatch(TaskBatch):
    """Rows of one set. tasks: "goal" (B, 3), what rewards are paid for, and "vector" (B, 3 or 6), from which the library resets.

    After `reset` and `step`, `full` (B, 39) holds the library's observations in float64. `infos`: success (B,), and in hidden
    sets what their rewards read: tcp (B, 3), the tool centre; pads (B, 6), left and right finger pad; object_start (B, 3).

    Args:
        name: of SETS. entries: of the observation, see ENTRIES. record: whether infos hold what rewards read.
    """

    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, name, entries, record, tasks):
        super().__init__(tasks)
        self.set, self.entries, self.record = SETS[name], entries, record
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (len(entries),), np.float32)
        self.simulator = simulator(name)
        environment, model = self.simulator.environment, self.simulator.model
        self.row_starts = [self.simulator.start(vector) for vector in self.tasks["vector"]]
        self.object_start, self.tcp_start = (np.stack([getattr(start, key) for start in self.row_starts])
                                             for key in ("object_start", "tcp_start"))  # fmt: skip
        self.datas = [mujoco.MjData(model) for _ in range(self.size)]
        self._low, self._high = environment.mocap_low, environment.mocap_high
        self._hand_box = np.r_[environment._HAND_SPACE.low, -1], np.r_[environment._HAND_SPACE.high, 1]

        def views(field, kind, name):  # the arrays of the simulator in which a row's value stands after a step
            place = getattr(model, kind)(name).id
            return [getattr(data, field)[place] for data in self.datas]

        self._views = {name: views("xpos", "body", name) for name in ("hand", "rightclaw", "leftclaw", "leftpad", "rightpad")}
        self._views |= {name: views("site_xpos", "site", name) for name in ("rightEndEffector", "leftEndEffector")}
        self._views["object"] = views(*self.set.position)
        if self.set.rotation:
            self._views["rotation"] = views(*self.set.rotation)

    def reset(self, seeds=None):
        """Nothing is random: the seeds have no effect."""
        for data, start in zip(self.datas, self.row_starts, strict=True):
            # No mj_forward here: it would refresh the warm start, and contacts would go another way some hundred steps later.
            mujoco.mj_setState(self.simulator.model, data, start.state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.full = np.stack([start.observation for start in self.row_starts])
        self._frame = self.full[:, :FRAME].copy()
        self._mocap = np.stack([data.mocap_pos[0] for data in self.datas])
        self.infos = {}
        return self.full[:, self.entries].astype(np.float32)

    def step(self, actions):
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.size, 4):
            raise ValueError(f"actions have shape {actions.shape}, expected {(self.size, 4)}")
        self._mocap = np.clip(self._mocap + np.clip(actions[:, :3], -1, 1) * HAND_STEP, self._low, self._high)
        effort, model = actions[:, 3].astype(np.float64), self.simulator.model
        for row, (data, start) in enumerate(zip(self.datas, self.row_starts, strict=True)):
            model.body_pos[:] = start.bodies
            data.mocap_pos[0] = self._mocap[row]
            data.ctrl[:] = effort[row], -effort[row]
            mujoco.mj_step(model, data, nstep=5)
            mujoco.mj_forward(model, data)
        seen = {name: np.array(rows) for name, rows in self._views.items()}
        self._observe(seen)
        tcp = (seen["rightEndEffector"] + seen["leftEndEffector"]) / 2
        pads = np.concatenate([seen["leftpad"], seen["rightpad"]], 1)
        paid, success = self.set.rewards(
            rewards.Step(
                self.full[:, OBJECT], self.full[:, 3], effort, tcp, pads, self.tasks["goal"], self.object_start, self.tcp_start
            )
        )
        read = {"tcp": tcp, "pads": pads, "object_start": self.object_start} if self.record else {}
        self.infos = {"success": success, **{key: values for key, values in read.items() if key in self.set.records}}
        return self.full[:, self.entries].astype(np.float32), paid.astype(np.float32)

    def _observe(self, seen):
        """The library's observations (B, 39): this frame, the former one; hand and opening of both within their box."""
        frame = np.zeros((self.size, FRAME))
        frame[:, :3], frame[:, OBJECT] = seen["hand"], seen["object"]
        # one by one, as the library does: a sum over rows may differ in the last bit
        gaps = [math.sqrt(gap.dot(gap)) for gap in seen["rightclaw"] - seen["leftclaw"]]
        frame[:, 3] = np.clip(np.array(gaps) / 0.1, 0, 1)
        if self.set.rotation:
            frame[:, 7:11] = turned(seen["rotation"])
        self.full = np.concatenate([frame, self._frame, np.zeros((self.size, 3))], 1)
        self._frame = frame
        for first in (0, FRAME):
            self.full[:, first : first + 4] = np.clip(self.full[:, first : first + 4], *self._hand_box)


def turned(rotations):
    """Quaternions (B, 4) of quaternions, which stay as they are, or of matrices (B, 9), as x y z w by scipy as in the library."""
    if rotations.shape[1] == 4:
        return rotations
    from scipy.spatial.transform import Rotation  # comes with metaworld

    return Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat()


# ---------------------------------------------------------------------------------------------------------------- env


class MetaWorldEnv(TaskEnv):
    """One episode of a set whose first observation tells the goal: its fixture stands where the task wants it.

    Relabelling would mean to move the fixture, so there is no compute_rewards.

    Args:
        name: of the set: push, push-v2 and push-v3 are the same.
        tasks: name of the task list, configs/tasks/<tasks>.json; by default metaworld_<name>.
        observe: "all", or "hand": hand and gripper alone, for sets whose object does nothing (Reach, Reach-Wall).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 (gymnasium's name)
    hidden_parameters = ("goal",)  # the vector holds it once more, and the object's place, which is seen
    records = False

    def __init__(self, name, tasks=None, observe="all", render_mode=None, max_episode_steps=None, width=320, height=240):
        name = name.lower().replace("_", "-").removesuffix("-v2").removesuffix("-v3")
        if name not in SETS:
            raise ValueError(f"there is no set {name!r}: choose from {', '.join(SETS)}")
        if observe not in ENTRIES:
            raise ValueError(f"observe is {observe!r}: choose from {', '.join(ENTRIES)}")
        if observe == "hand" and SETS[name].rewards is not rewards.reach:
            raise ValueError(f"observe: hand hides the object, which {name} is about: it is for reach and reach-wall")
        self.name, self.entries = name, ENTRIES[observe]
        self.env_type = tasks or f"metaworld_{name.replace('-', '_')}"  # of the task list
        self.batch_class = functools.partial(MetaWorldBatch, name, self.entries, self.records)
        self.width, self.height, self._renderer = width, height, None
        super().__init__(render_mode, max_episode_steps or HORIZON)

    @staticmethod
    def task_features(tasks):
        """What a behaviour agent that knows its task is told: the goal (num_tasks, 3)."""
        return tasks["goal"]

    @property
    def simulator(self):
        """What computes the physics and the rewards, with versions: part of every dataset's SHA-256."""
        return f"mujoco {mujoco.__version__}, metaworld {importlib.metadata.version('metaworld')}"

    @property
    def scripted_name(self):
        """Class name of the library's scripted policy."""
        return f"Sawyer{''.join(part.title() for part in self.name.split('-'))}V3Policy"

    def scripted_policy(self, observations, task_ids, errors=0.0):
        """The library's scripted policy, told the goals of task_ids (B,): actions (B, 4), not yet within the bounds.

        observations (B, d_s). errors (B, 3): metres by which it is wrong about the goal; in sets whose object tells the goal,
        about the object.
        """
        return self.told(observations, self.tasks["goal"][task_ids], errors)

    def told(self, observations, goals, errors=0.0):
        """`scripted_policy`, told goals (B, 3)."""
        policy = getattr(library().policies, self.scripted_name)()
        full = np.zeros((len(observations), 39))
        full[:, self.entries] = np.asarray(observations)[:, : len(self.entries)]
        full[:, GOAL] = goals
        full[:, self._misled] += errors
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant\\(s\\) may be too high")  # at every action that is clipped
            return np.stack([policy.get_action(row) for row in full])

    _misled = OBJECT

    def reference_policies(self, env_tasks, train_ids):
        """The reference levels: name -> function (observations (B, d_s), task ids (B,)) -> actions (B, 4).

        trivial does nothing; task_blind is the scripted policy told the mean goal of the training tasks; best_known is told the
        goal. In Reach both bring the tool centre there, which is paid, not the hand, and as fast as it goes.
        """
        aim, gain = np.array(SETS[self.name].aim), SETS[self.name].gain
        mean = env_tasks["goal"][np.asarray(train_ids)].mean(0) + aim
        return {
            "trivial": lambda observations, task_ids: np.zeros((len(observations), 4), np.float32),
            "task_blind": lambda observations, task_ids: gain * self.told(observations, mean),
            "best_known": lambda observations, task_ids: gain * self.told(observations, env_tasks["goal"][task_ids] + aim),
        }

    def render(self):
        """Table and arm, with the goal marked, (height, width, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        batch = self._batch
        start, model = batch.row_starts[0], batch.simulator.model
        if self._renderer is None:
            self._renderer = make_renderer(model, self.width, self.height)
            atexit.register(self._renderer.close)  # mujoco complains when the interpreter ends first
        model.body_pos[:] = start.bodies
        data = copy.copy(batch.datas[0])  # what is drawn must not touch the warm start
        mujoco.mj_forward(model, data)
        data.site_xpos[start.goal_sites] = start.goal
        self._renderer.update_scene(data, camera=viewpoint())
        return self._renderer.render()

    def close(self):
        if self._renderer is not None:
            atexit.unregister(self._renderer.close)
            self._renderer.close()
            self._renderer = None


def viewpoint():
    """The camera: from the far side of the table, towards the arm."""
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = (0, 0.65, 0.1), 1.2, -125, -25
    return camera


class HiddenGoalEnv(MetaWorldEnv):
    """One episode of a set whose goal no observation tells: it has to be inferred from rewards."""

    records = True
    _misled = GOAL

    @property
    def info_keys(self):
        return SETS[self.name].records

    def compute_rewards(self, observations, actions, next_observations, tasks, infos=None):
        """Rewards that other tasks would pay for the same transitions; arrays broadcast.

        The object's start is that of the recorded episode. Exact to 1e-4 where the records are float32, but for a step in
        10,000 or fewer at a threshold. In Plate-Slide, Soccer, Shelf-Place and Coffee-Push the goal is a body that can be
        touched: there the motion near it would have been another one.
        """
        if infos is None or not infos.keys() >= set(self.info_keys):
            raise ValueError(f"these rewards need the recorded infos {', '.join(self.info_keys)}")
        seen = np.asarray(next_observations, np.float64)
        read = {key: np.asarray(infos[key], np.float64) for key in self.info_keys}
        everything = len(self.entries) == len(ENTRIES["all"])
        step = rewards.Step(
            object=seen[..., OBJECT] if everything else None,
            opening=seen[..., 3],
            effort=np.asarray(actions, np.float64)[..., 3],
            tcp=read["tcp"],
            pads=read.get("pads"),
            goal=tasks["goal"],
            object_start=read.get("object_start"),
            tcp_start=self._batch.tcp_start[0],  # in these sets the same for all tasks
        )
        return SETS[self.name].rewards(step)[0].astype(np.float32)


# --------------------------------------------------------------------------------------------------------- task lists


SEED, TASKS = 1337, 50  # of the lists that IDAQ and the tables use


def draw_vectors(name, seed, number, every=2):
    """(number, 3 or 6) the vectors that the library's ML1(name, seed) draws for its training tasks.

    numpy's legacy generator draws all components at once, uniformly in the library's box; a draw whose start and goal are less
    than `apart` from each other is left out. Every second one is kept, since release 3.1.1 resets twice per task; with every=1
    all are.
    """
    space, generator = simulator(name).environment._random_reset_space, np.random.RandomState(seed)
    accepted = []
    while len(accepted) < number * every:
        vector = generator.uniform(space.low, space.high, space.low.size)
        if len(vector) == 3 or np.linalg.norm(vector[:2] - vector[3:5]) >= SETS[name].apart:
            accepted.append(vector)
    return np.stack(accepted[every - 1 :: every])


def task_list(name, seed=SEED, number=TASKS, every=2):
    """[{"goal", "vector"}] of a set: the goal is where one reset of the library puts it."""
    vectors = draw_vectors(name, seed, number, every)
    return [{"goal": simulator(name).start(vector).goal.tolist(), "vector": vector.tolist()} for vector in vectors]


def write_lists(directory=TASK_DIR):
    """The task list of every set, and Meta-DT's own of Reach."""
    written = "Written by python -m envs.meta_world."
    for name in SETS:
        env_type = f"metaworld_{name.replace('-', '_')}"
        source = f"The {TASKS} training tasks of ML1('{name}-v3', seed={SEED}) of metaworld 3.1.1: every second draw. {written}"
        write_list(directory / f"{env_type}.json", env_type, source, task_list(name))
    source = f"20 tasks of Reach, seed 3407, every draw: the list of Meta-DT. {written}"
    write_list(directory / "metaworld_reach_20.json", "metaworld_reach_20", source, task_list("reach", 3407, 20, every=1))


if __name__ == "__main__":
    write_lists()
