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

from envs.base import TaskBatch, TaskEnv

MODEL_DIR = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"


@lru_cache
def load_model(file_name):
    """The compiled model of one of gymnasium's XML files. Shared: copy it before changing a field."""
    return mujoco.MjModel.from_xml_path(str(MODEL_DIR / file_name))


class MujocoBatch(TaskBatch):
    """Rows that each have a simulation of their own.

    After `reset` and `step`, `qpos` (B, nq) and `qvel` (B, nv) hold the simulator states, and after `step` `infos` holds a
    dict of (B,) arrays with what the observation does not tell. Subclasses give `base_model`, `sample_start`, `observe` and
    `rewards`, and may change `frame_skip`, `contact_forces`, `make_models` and `measure`.

    Args:
        tasks: dict of task parameters (B, ...), one row per episode.
        threads: threads that share the rows; by default one per core, or OMP_NUM_THREADS where that is set.
    """

    frame_skip = 5
    contact_forces = False  # whether a step also computes `cfrc_ext`

    def __init__(self, tasks, start=None, threads=None):
        super().__init__(tasks, start)
        self.models = self.make_models(self.size)
        self.datas = [mujoco.MjData(model) for model in self.models]
        self.control_step = self.models[0].opt.timestep * self.frame_skip  # seconds
        self.qpos = np.stack([data.qpos for data in self.datas])
        self.qvel = np.stack([data.qvel for data in self.datas])
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.observe().shape[1:], np.float32)
        low, high = self.models[0].actuator_ctrlrange.T.astype(np.float32)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        threads = min(self.size, threads or default_threads())
        self._chunks = np.array_split(np.arange(self.size), threads)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def make_models(self, rows):
        """One model per row; a single shared one where tasks differ in the reward only."""
        return [copy.copy(self.base_model())] * rows

    def reset(self, seeds=None):
        return self.restart(range(self.size), [None] * self.size if seeds is None else seeds)

    def restart(self, rows, seeds):
        """Put the rows `rows` back to the start of an episode, with a seed each; the observations (B, d_s) of all."""
        for row, seed in zip(rows, seeds, strict=True):
            model, data = self.models[row], self.datas[row]
            mujoco.mj_resetData(model, data)
            data.qpos[:], data.qvel[:] = self.sample_start(np.random.default_rng(seed), model)
            mujoco.mj_forward(model, data)
            self.qpos[row], self.qvel[row] = data.qpos, data.qvel
        return self.observe().astype(np.float32)

    def step(self, actions):
        """The simulator clamps the torques to the action bounds; the control cost is that of the action as given."""
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


class MujocoEnv(TaskEnv):
    """One episode of a family under the gymnasium interface, with a camera that follows the robot."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's name)
    simulator = f"mujoco {mujoco.__version__}"

    def __init__(self, render_mode=None, max_episode_steps=None, width=320, height=240):
        super().__init__(render_mode, max_episode_steps)
        self.width, self.height, self._renderer = width, height, None

    @property
    def model(self):
        """The mujoco.MjModel of the current task."""
        return self._batch.models[0]

    @property
    def data(self):
        """The mujoco.MjData of the running episode."""
        return self._batch.datas[0]

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
