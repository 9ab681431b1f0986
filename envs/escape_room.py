"""Escape room: a point robot inside a circular wall looks for the door, whose place it cannot see.

Observation: position (2). Action: displacement (2), clipped to ±0.1 per coordinate. Reward 1 outside the unit circle,
else 0. 60 steps, never terminates. A task is the angle of the door's centre in (0, π); the door is π/8 wide. Start at
the origin; collecting: uniform in angle and in radius within the circle.
Source: the escape room of BOReL (Dorfman et al., NeurIPS 2021), played for 2 episodes per task.
"""

import numpy as np

from envs.base import TaskBatch, TaskEnv
from envs.borel_points import MAX_STEP, PointRobotSparseBatch, directions, greedy_steps

INNER, OUTER = 0.999, 1.0  # radii of the wall
BLOCKED_RADIUS = 0.99
HALF_DOOR = np.pi / 16
OUTSIDE_TARGET = 1.6  # radius of the point that best_known walks to


def door_contains(angles, door_angles):
    """Is the door open at `angles`? Arrays broadcast.

    The difference is wrapped to [−π, π). The original does not wrap, which walls up a part of the doors beyond 15π/16.
    """
    difference = np.remainder(angles - door_angles + np.pi, 2 * np.pi) - np.pi
    return np.abs(difference) <= HALF_DOOR


def wall_contact(positions, displacements):
    """Where the segments first touch the wall.

    Args:
        positions, displacements: (B, 2) float64.

    Returns:
        touched (B,) bool, and the fraction t in [0, 1] of the displacement at the touching point, (B,).
    """
    # |p + t·d|² = R², R the side of the wall that faces the robot; from inside the larger root, else the smaller
    radii = np.linalg.norm(positions, axis=-1)
    inside, outside = radii < INNER, radii > OUTER
    a = (displacements**2).sum(-1)
    b = (positions * displacements).sum(-1)
    c = radii**2 - np.where(inside, INNER, OUTER) ** 2
    discriminant = b**2 - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    fractions = np.where(inside, -b + root, -b - root) / np.where(a > 0, a, 1)
    crossing = (inside | outside) & (a > 0) & (discriminant >= 0) & (fractions >= 0) & (fractions <= 1)
    in_wall = ~(inside | outside)
    return crossing | in_wall, np.where(crossing, fractions, 0.0)


class EscapeRoomBatch(TaskBatch):
    """Rows of escape rooms. tasks: "angle" (B,) in radians. start: "fixed" at the origin, or "uniform".

    A step that touches the wall away from the door ends at radius 0.99 in the direction of its end point. The rule is
    the original's and has no side: a robot that runs into the wall from outside ends inside.
    """

    observation_space, action_space = PointRobotSparseBatch.observation_space, PointRobotSparseBatch.action_space
    starts = ("fixed", "uniform")

    def draw_start(self, generator, row):
        return directions(generator.uniform(-np.pi, np.pi)) * generator.uniform()

    def transition(self, actions):
        positions = self.states.astype(np.float64)
        displacements = np.clip(actions.astype(np.float64), -MAX_STEP, MAX_STEP)
        touched, fractions = wall_contact(positions, displacements)
        contacts = positions + fractions[:, None] * displacements
        blocked = touched & ~door_contains(np.arctan2(contacts[:, 1], contacts[:, 0]), self.tasks["angle"])
        ends = positions + displacements
        scale = BLOCKED_RADIUS / np.where(blocked, np.linalg.norm(ends, axis=-1), BLOCKED_RADIUS)
        return ends * scale[:, None]

    @staticmethod
    def compute_success(next_observations, tasks):
        outside = np.linalg.norm(np.asarray(next_observations, dtype=np.float64)[..., :2], axis=-1) > OUTER
        return np.broadcast_to(outside, np.broadcast_shapes(outside.shape, np.shape(tasks["angle"])))

    @staticmethod
    def compute_rewards(observations, actions, next_observations, tasks, infos=None):
        return EscapeRoomBatch.compute_success(next_observations, tasks).astype(np.float32)


class EscapeRoomEnv(TaskEnv):
    """The escape room under the gymnasium interface."""

    env_type = "escape_room"
    batch_class = EscapeRoomBatch
    compute_rewards = staticmethod(EscapeRoomBatch.compute_rewards)
    compute_success = staticmethod(EscapeRoomBatch.compute_success)

    @staticmethod
    def reference_policies(env_tasks, train_ids):
        """trivial stays put; task_blind walks where the most training doors are; best_known walks through the door."""
        candidates = np.linspace(0, np.pi, 181)
        open_doors = door_contains(candidates[:, None], env_tasks["angle"][np.asarray(train_ids)])
        blind_angle = candidates[open_doors.sum(-1).argmax()]
        return {
            "trivial": lambda observations, task_ids: np.zeros_like(observations[:, :2]),
            "task_blind": lambda observations, task_ids: escape_steps(blind_angle, observations),
            "best_known": lambda observations, task_ids: escape_steps(env_tasks["angle"][task_ids], observations),
        }


def escape_steps(angles, observations):
    """Steps (B, 2) straight to radius 1.6 at `angles`, none once within 0.1 of that point."""
    displacements = OUTSIDE_TARGET * directions(angles) - observations[:, :2]
    arrived = np.abs(displacements).max(-1, keepdims=True) <= MAX_STEP
    return np.where(arrived, 0, greedy_steps(displacements))
