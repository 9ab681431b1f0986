"""What the MuJoCo families share: B simulations stepped side by side, and the gymnasium face of one of them.

A family is a `MujocoBatch` (model, start state, observation, reward) and a `MujocoEnv` that names it. The models are the
XML files of the installed gymnasium package; constants that differ are set in code.
"""

import atexit
import copy
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

from envs.tasks import load_tasks

HORIZON = 200
MODEL_DIR = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"


@lru_cache
def load_model(file_name):
    """The compiled model of one of gymnasium's XML files. Shared: copy it before changing a field."""
    return mujoco.MjModel.from_xml_path(str(MODEL_DIR / file_name))


class MujocoBatch:
    """Many (task, episode) rows, each with a simulation of its own; a row's numbers do not depend on the other rows.

    After `reset` and `step`, `qpos` (B, nq) and `qvel` (B, nv) hold the simulator states, and after `step` `infos` holds a
    dict of (B,) arrays with what the observation does not tell. Subclasses give `base_model`, `sample_start`, `observe` and
    `rewards`, and may change `frame_skip`, `contact_forces`, `make_models` and `measure`.

    Args:
        tasks: dict of task parameters (B, ...), one row per episode.
        threads: threads that share the rows; by default one per core, or OMP_NUM_THREADS where that is set.
    """

    frame_skip = 5
    contact_forces = False  # whether a step also computes `cfrc_ext`

    def __init__(self, tasks, threads=None):
        self.tasks = {key: np.asarray(values, dtype=np.float64) for key, values in tasks.items()}
        rows = len(next(iter(self.tasks.values())))
        self.models = self.make_models(rows)
        self.datas = [mujoco.MjData(model) for model in self.models]
        self.control_step = self.models[0].opt.timestep * self.frame_skip  # seconds
        self.qpos = np.stack([data.qpos for data in self.datas])
        self.qvel = np.stack([data.qvel for data in self.datas])
        self.infos = {}
        threads = min(rows, threads or default_threads())
        self._chunks = np.array_split(np.arange(rows), threads)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def make_models(self, rows):
        """One model per row; a single shared one where tasks differ in the reward only."""
        return [copy.copy(self.base_model())] * rows

    def reset(self, seeds=None):
        """Start every episode anew.

        seeds: (B,) integers or numpy Generators, None for fresh entropy -> observations (B, d_s) float32.
        """
        for row, (model, data) in enumerate(zip(self.models, self.datas, strict=True)):
            generator = np.random.default_rng(None if seeds is None else seeds[row])
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = self.sample_start(generator, model)
            mujoco.mj_forward(model, data)
            self.qpos[row], self.qvel[row] = data.qpos, data.qvel
        return self.observe().astype(np.float32)

    def step(self, actions):
        """actions (B, d_a) -> next observations (B, d_s) float32, rewards (B,) float32.

        The simulator clamps the torques to the action bounds; the control cost is that of the action as given.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (len(self.datas), self.models[0].nu):
            raise ValueError(f"actions have shape {actions.shape}, expected {(len(self.datas), self.models[0].nu)}")
        before = self.qpos.copy()
        if self._pool is None:
            self._simulate(self._chunks[0], actions)
        else:
            list(self._pool.map(lambda chunk: self._simulate(chunk, actions), self._chunks))
        self.infos = self.measure(before)
        rewards = self.rewards(actions, self.tasks, self.infos)
        return self.observe().astype(np.float32), rewards.astype(np.float32)

    def _simulate(self, rows, actions):
        for row in rows:
            model, data = self.models[row], self.datas[row]
            data.ctrl[:] = actions[row]
            mujoco.mj_step(model, data, nstep=self.frame_skip)
            if self.contact_forces:
                mujoco.mj_rnePostConstraint(model, data)
            self.qpos[row], self.qvel[row] = data.qpos, data.qvel

    def measure(self, before):
        """The `infos` of a step from the state before it (B, nq). Velocities: displacement of the root per second."""
        return {"x_velocity": (self.qpos[:, 0] - before[:, 0]) / self.control_step}


def default_threads():
    """OMP_NUM_THREADS if set, else the number of cores of this process."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class MujocoEnv(gym.Env):
    """One episode of a family under the gymnasium interface: a batch with one row, so the numbers are those of the batch.

    `reset(options={"task": i})` chooses the task and later resets keep it. `terminated` is False unless the batch says otherwise
    in `infos["terminated"]`, `truncated` comes after `horizon` steps. `info_keys` names the entries of `info` that
    `compute_rewards` needs beside the transition itself.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's name)
    info_keys = ()
    horizon = HORIZON

    def __init__(self, render_mode=None, width=320, height=240):
        self.render_mode, self.width, self.height = render_mode, width, height
        self.tasks = load_tasks(self.env_type)
        self._renderer = None
        self.set_task(0)
        size = self._batch.observe().shape[1]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = self.model.actuator_ctrlrange.T.astype(np.float32)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    @property
    def model(self):
        """The mujoco.MjModel of the current task."""
        return self._batch.models[0]

    @property
    def data(self):
        """The mujoco.MjData of the running episode."""
        return self._batch.datas[0]

    def set_task(self, task):
        """Choose task `task` (row of `tasks`) from the next reset on; ValueError if there is no such task."""
        count = len(next(iter(self.tasks.values())))
        if not 0 <= task < count:
            raise ValueError(f"task {task} does not exist: {self.env_type} has tasks 0 to {count - 1}")
        self.task = task
        self._batch = self.batch_class({key: values[[task]] for key, values in self.tasks.items()})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and "task" in options:
            self.set_task(int(options["task"]))
        self._steps = 0
        return self._batch.reset([self.np_random])[0], {}

    def step(self, action):
        observations, rewards = self._batch.step(np.asarray(action)[None])
        self._steps += 1
        infos = {key: float(values[0]) for key, values in self._batch.infos.items()}
        return observations[0], float(rewards[0]), bool(infos.get("terminated")), self._steps >= self.horizon, infos

    @classmethod
    def reference_policies(cls, env_tasks, train_ids):
        """Reference levels that code can act out: name -> function (observations (B, d_s), task ids (B,)) -> actions.

        trivial applies no torque (B, d_a). A robot that walks at a chosen speed needs training, so there is no other.
        """
        size = cls.batch_class.base_model().nu
        return {"trivial": lambda observations, task_ids: np.zeros((len(observations), size), np.float32)}

    def render(self):
        """What the camera that follows the robot sees, (height, width, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = make_renderer(self.model, self.width, self.height)
            atexit.register(self._renderer.close)  # mujoco complains when the interpreter ends first
        self._renderer.update_scene(self.data, camera="track")
        return self._renderer.render()

    def close(self):
        if self._renderer is not None:
            atexit.unregister(self._renderer.close)
            self._renderer.close()
            self._renderer = None


def make_renderer(model, width, height):
    """An off-screen mujoco.Renderer; RuntimeError with the mend where the machine has no usable OpenGL.

    mujoco chooses its OpenGL when it is imported, and takes the window system's unless MUJOCO_GL says otherwise. Without a
    display that cannot work, so we take EGL there.
    """
    # Software OpenGL pays for every pixel of the buffer and of the shadow map: three times faster than the defaults.
    model.vis.global_.offwidth, model.vis.global_.offheight, model.vis.quality.shadowsize = width, height, 1024
    try:
        if sys.platform == "linux" and not os.environ.get("MUJOCO_GL") and not os.environ.get("DISPLAY"):
            from mujoco.egl import GLContext

            mujoco.gl_context.GLContext = GLContext
        mujoco.gl_context.GLContext(width, height).free()  # mujoco.Renderer would fail less cleanly
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # what is raised depends on which library is missing
        mend = "install libegl1 and libgl1 and set MUJOCO_GL=egl, or libosmesa6 and MUJOCO_GL=osmesa"
        raise RuntimeError(f"no OpenGL to render with: {mend}") from error
