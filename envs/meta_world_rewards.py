"""The dense rewards of Meta-World's sets as functions of arrays, one per set: `Step` -> rewards (...,), success (...,) bool.

Formulas of metaworld 3.1.1 (MIT licence, Farama Foundation; rewards of version "v2", 0 to 10). `tolerance` and `hamacher` come
there from dm_control (Apache-2.0). Nothing is imported but numpy, so that recorded steps can be paid again without the simulator.
"""

from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """What a reward reads, after a step. Positions (..., 3) in metres, numbers (...); the arrays broadcast.

    object: of the observation's first object. opening: of the gripper, 0 to 1. effort: the action's last entry. tcp: the tool
    centre, in the middle of the fingertips. pads (..., 6): left, then right finger pad. goal: of the task that pays.
    object_start, tcp_start: where object and tool centre were at the reset.
    """

    object: np.ndarray
    opening: np.ndarray
    effort: np.ndarray
    tcp: np.ndarray
    pads: np.ndarray
    goal: np.ndarray
    object_start: np.ndarray
    tcp_start: np.ndarray


HAND_START = np.array([0, 0.6, 0.2])  # of Reach and Reach-Wall
NEAR = 0.05  # metres between object and goal at which most sets pay 10


# ------------------------------------------------------------------------------------------------------------- parts


def tolerance(x, low, high, margin, tail="long"):
    """1 where low <= x <= high; outside it falls to 0.1 at the distance `margin`, with a long tail or as a Gaussian."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(x < low, low - x, x - high) / margin
        outside = 1 / (1 + 9 * distance**2) if tail == "long" else 0.1 ** (distance**2)
    return np.where((low <= x) & (x <= high), 1.0, np.where(margin == 0, 0.0, outside))


def hamacher(a, b):
    """The Hamacher product, a t-norm: ab / (a + b - ab), 0 where both are 0."""
    total = a + b - a * b
    return np.where(total > 0, a * b / np.where(total > 0, total, 1), 0.0)


def norm(vectors):
    """Euclidean norm over the last axis."""
    return np.sqrt((vectors**2).sum(-1))


def placed(step, near=NEAR, scale=1.0):
    """(how well the object is in its place 0 to 1, its distance to the goal); `scale` weighs the axes."""
    distance = norm((step.object - step.goal) * scale)
    return tolerance(distance, 0, near, norm((step.object_start - step.goal) * scale)), distance


def caged(step, radius, pad, reach, plane, effort=1.0, density=None):
    """How well the fingers hold the object: pads in y, tool centre in x and z, gripper closed. Margins are those of the start.

    radius, pad: bounds of a pad's distance to the object in y. plane: of the tool centre's in x and z. effort: of a closed
    gripper. density: "high" pays the caging too, "medium" the way to the object (within `reach`).
    """
    sides = step.pads[..., [1, 4]]
    margin = np.abs(np.abs(sides - step.object_start[..., 1:2]) - pad)
    both = tolerance(np.abs(sides - step.object[..., 1:2]), radius, pad, margin)
    caging = hamacher(hamacher(both[..., 0], both[..., 1]), in_plane(step, plane))
    closed = np.clip(step.effort, 0, effort) / effort
    held = hamacher(caging, np.where(caging > 0.97, closed, 0.0))
    if density == "high":
        return (held + caging) / 2
    if density == "medium":
        margin = np.abs(norm(step.object_start - step.tcp_start) - reach)
        return (held + tolerance(norm(step.object - step.tcp), 0, reach, margin)) / 2
    return held


def in_plane(step, bound):
    """How near the tool centre is to the object in x and z, 1 within `bound`."""
    margin = norm((step.object_start - step.tcp_start)[..., [0, 2]]) - bound
    return tolerance(norm((step.tcp - step.object)[..., [0, 2]]), 0, bound, margin)


def around(step, radius, wide=0.05):
    """How well both pads stand around the object in y, within radius to `wide`. The library's margins are of the present pads."""
    left, right = step.pads[..., 1] - step.object[..., 1], step.object[..., 1] - step.pads[..., 4]
    margins = (np.abs(np.abs(side) - 0.05) for side in (right, left))
    return hamacher(*(tolerance(side, radius, wide, margin) for side, margin in zip((right, left), margins, strict=True)))


def clasped(step, radius):
    """The hold on the object as Sweep and Soccer pay it."""
    caging = hamacher(around(step, radius), in_plane(step, 0.005))
    return (caging + np.where(caging > 0.95, around(step, radius, radius + 0.01), 0.0)) / 2


def carried(step, held, place, near, lifted=True):
    """Pay for holding and placing; 1 more, and 5 for the place, while an open gripper has the object (and it is `lifted`)."""
    has = (norm(step.object - step.tcp) < near) & (step.opening > 0) & lifted
    return hamacher(held, place) + np.where(has, 1 + 5 * place, 0.0)


def done(distance, rewards, near=NEAR):
    """10 within `near` of the goal, else the rewards."""
    return np.where(distance < near, 10.0, rewards)


# -------------------------------------------------------------------------------------------------------------- sets


def reach(step):
    """The tool centre at a point in the air."""
    distance = norm(step.tcp - step.goal)
    return 10 * tolerance(distance, 0, 0.05, norm(HAND_START - step.goal)), distance <= 0.05


def push(step):
    """The puck at a place on the table."""
    place, distance = placed(step)
    held = caged(step, 0.015, 0.05, 0.01, 0.005, density="high")
    has = (norm(step.object - step.tcp) < 0.02) & (step.opening > 0)
    return done(distance, 2 * held + np.where(has, 1 + 2 * held + 5 * place, 0.0)), distance <= 0.05


def push_wall(step):
    """The puck around a wall: first to its end, then to the goal."""
    place, distance = placed(step)
    held = caged(step, 0.015, 0.05, 0.01, 0.005, density="high")
    wall, scale = np.array([-0.05, 0.77]), np.array([3.0, 1, 1])
    middle = np.concatenate([np.broadcast_to(wall, (*step.object.shape[:-1], 2)), step.object[..., 2:]], -1)
    round_it = tolerance(norm((step.object - middle) * scale), 0, 0.05, norm((step.object_start - middle) * scale))
    has = (norm(step.object - step.tcp) < 0.02) & (step.opening > 0)
    behind = step.object[..., 1] > 0.75
    more = np.where(behind, 5 + 3 * place, 1 + 4 * round_it)
    return done(distance, 2 * held + np.where(has, more, 0.0)), distance <= 0.07


def pick_place(step):
    """The puck at a point in the air."""
    place, distance = placed(step)
    caging = hamacher(around(step, 0.015), in_plane(step, 0.005))
    held = (hamacher(caging, np.where(caging > 0.97, np.clip(step.effort, 0, 1), 0.0)) + caging) / 2
    lifted = step.object[..., 2] - 0.01 > step.object_start[..., 2]
    return done(distance, carried(step, held, place, 0.02, lifted)), distance <= 0.07


def soccer(step):
    """The ball in a net; sideways counts three times, and beside the net it is worth less the nearer to the line."""
    scale = np.array([3.0, 1, 1])
    distance = norm((step.object - step.goal) * scale)
    place = tolerance(distance, 0, 0.07, norm((step.object - step.object_start) * scale))
    line = step.goal[..., 1] - 0.1
    beside = (step.object[..., 1] > line) & (np.abs(step.object[..., 0] - step.goal[..., 0]) > 0.1)
    place = np.where(beside, np.clip(place - 2 * (step.object[..., 1] - line) / (1 - line), 0, 1), place)
    rewards = 3 * clasped(step, 0.013) + 6.5 * place
    return done(distance, rewards, 0.07), norm(step.object - step.goal) <= 0.07


def plate_slide(step):
    """The plate in a net behind it."""
    place, distance = placed(step)
    near = tolerance(norm(step.object - step.tcp), 0, 0.05, norm(step.tcp_start - step.object_start))
    return done(distance, 8 * hamacher(near, place)), distance <= 0.07


def plate_slide_side(step):
    """The plate in a net beside it, or in front of it (Plate-Slide-Back)."""
    distance, gap = norm(step.object - step.goal), norm(step.object - step.tcp)
    place = tolerance(distance, 0, 0.05, norm(step.object_start - step.goal) - 0.05)
    near = tolerance(gap, 0, 0.05, norm(step.tcp_start - step.object_start) - 0.05)
    rewards = np.where((step.tcp[..., 2] <= 0.03) & (gap < 0.07), 2 + 7 * place, 1.5 * near)
    return done(distance, rewards), distance <= 0.07


def shelf_place(step):
    """The block on a shelf; in front of and below the board its place counts less, beside the hold."""
    whole, distance = placed(step)
    x, y, z = (step.object[..., axis] for axis in range(3))
    low = (z > 0) & (z < 0.24) & (np.abs(x - step.goal[..., 0]) < 0.15)
    front = step.goal[..., 1] - 0.15
    loss = hamacher(np.clip((y - front) / 0.15, 0, 1), np.clip((0.24 - z) / 0.24, 0, 1))
    place = np.where(low & (front < y) & (y < step.goal[..., 1]), np.clip(whole - loss, 0, 1), whole)
    place = np.where(low & (y > step.goal[..., 1]), 0.0, place)
    held = caged(step, 0.02, 0.05, 0.01, 0.01)
    has = (norm(step.object - step.tcp) < 0.025) & (step.opening > 0) & (z - 0.01 > step.object_start[..., 2])
    return done(distance, hamacher(held, whole) + np.where(has, 1 + 5 * place, 0.0)), distance <= 0.07


def pick_out_of_hole(step):
    """The puck out of its hole to a point in the air; the tool centre is to stay above a funnel around the hole."""
    place, distance = placed(step, 0.02)
    across = norm((step.tcp - step.object_start)[..., :2])
    floor = np.where(across <= 0.03, 0.0, 0.015 * np.log(np.maximum(across - 0.03, 1e-300)) + 0.15)
    above = np.where(step.tcp[..., 2] >= floor, 1.0, tolerance(np.maximum(floor - step.tcp[..., 2], 0), 0, 0.01, 0.02))
    held = caged(step, 0.015, 0.02, 0.01, 0.03, effort=0.1, density="high")
    has = norm(step.object - step.tcp) < 0.04
    has &= (step.object[..., 2] - 0.02 > step.object_start[..., 2]) & (step.opening >= 0.33)
    return done(distance, hamacher(held, place) + np.where(has, 1 + 5 * hamacher(place, above), 0.0)), distance <= 0.07


def coffee_push(step):
    """The mug under a coffee machine; in x and y it counts twice."""
    place, weighed = placed(step, scale=np.array([2.0, 2, 1]))
    held = caged(step, 0.02, 0.05, 0.04, 0.05, effort=0.7, density="medium")
    return done(weighed, carried(step, held, place, 0.04)), norm(step.object - step.goal) <= 0.07


def sweep(step):
    """The block at the table's edge."""
    place, distance = placed(step)
    held = clasped(step, 0.02)
    return done(distance, 2 * held + 6 * hamacher(held, place)), distance <= 0.05


def window_close(step):
    """The window's handle at the closed end."""
    start, goal = step.object_start, step.goal
    distance = np.abs(step.object[..., 0] - goal[..., 0])
    place = tolerance(distance, 0, 0.05, np.abs(np.abs(start[..., 0] - goal[..., 0]) - 0.05))
    near = tolerance(norm(step.object - step.tcp), 0, 0.02, np.abs(norm(start - step.tcp_start) - 0.02), "gauss")
    return 10 * hamacher(near, place), distance <= 0.05


def door_lock(step):
    """The lock turned down; the left pad is to touch it. Its margin is the present distance, so the way there pays the same."""
    gap = norm((step.object - step.pads[..., :3]) * np.array([0.25, 1, 0.5]))
    depth = np.abs(step.goal[..., 2] - step.object[..., 2])
    touch = hamacher(np.maximum(step.opening, 0), tolerance(gap, 0, 0.01, gap))
    return 2 * touch + 8 * tolerance(depth, 0, 0.005, 0.1), depth <= 0.02


def handle_pull(step):
    """The handle up. The library compares the handle's y with its start's z, so it always counts as lifted."""
    height = np.abs(step.goal[..., 2] - step.object[..., 2])
    place = tolerance(height, 0, 0.05, np.abs(step.goal[..., 2] - step.object_start[..., 2]))
    held = caged(step, 0.022, 0.05, 0.01, 0.01, density="high")
    lifted = step.object[..., 1] - 0.01 > step.object_start[..., 2]
    return done(height, carried(step, held, place, 0.035, lifted)), height <= 0.05


def handle_pull_side(step):
    """The handle at the side up."""
    place, distance = placed(step)
    held = caged(step, 0.032, 0.06, 0.01, 0.01, density="high")
    lifted = step.object[..., 2] - 0.01 > step.object_start[..., 2]
    return done(distance, carried(step, held, place, 0.035, lifted)), distance <= 0.08
