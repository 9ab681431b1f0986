"""How far off is the goal that z tells on Point-Robot, by time step: three probes, then a noisy walk to the goal.

    python -m benchmarks.goal_error OUTPUT.json FOLDER...

The goal that z tells is the place, of a grid, for which the world model predicts the highest reward. Validation tasks 30 to 39, which
the models of --validation never saw, and training tasks 0 to 9.
"""

import sys

import numpy as np
import torch

from src.evaluation.exploration import orthogonal_actions
from src.models.world_model import RunningContexts, load_world_model
from src.run.config import load_env
from src.run.files import write_json
from src.run.provenance import provenance

TASKS = {"validation": range(30, 40), "training": range(10)}
ROWS, STEPS, PROBES = 8, 20, 3
AXIS = np.linspace(-1, 1, 41)
PLACES = np.stack(np.meshgrid(AXIS, AXIS), -1).reshape(-1, 2)


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


def told(model, contexts):
    """Goals (B, 2) that contexts (B, 16) tell."""
    places = tensor(PLACES)
    best = [model.decode(places, 0 * places, places, z.expand(len(places), -1))[0].argmax() for z in contexts]
    return PLACES[torch.stack(best).numpy()]


@torch.inference_mode()
def errors(model, goals):
    """Mean distance between goal and told goal after 1 ... STEPS steps."""
    generator = np.random.default_rng(0)
    probes = 0.1 * orthogonal_actions(len(goals), 2, PROBES, generator)
    contexts, positions, found = RunningContexts(model, len(goals)), np.zeros(goals.shape), []
    for step in range(STEPS):
        walk = np.clip(goals - positions + 0.3 * generator.standard_normal(goals.shape), -0.1, 0.1)
        actions = probes[:, step] if step < PROBES else walk
        after = positions + actions
        contexts.step(tensor(positions), tensor(actions), tensor(-np.linalg.norm(after - goals, axis=-1)))
        positions = after
        found.append(round(float(np.linalg.norm(told(model, contexts.current) - goals, axis=-1).mean()), 3))
    return found


def main(output, *folders):
    table = load_env("point_robot").make().unwrapped.tasks["goal"]
    rows = []
    for folder in folders:
        model, config = load_world_model(folder, "best")
        changed = {key: config[key] for key in ("shuffle_share", "per_context", "embedding_size", "steps")}
        measured = {name: errors(model, np.repeat(table[list(tasks)], ROWS, 0)) for name, tasks in TASKS.items()}
        rows.append({"settings": changed, "goal_error_by_step": measured})
    write_json(output, {"what": __doc__.splitlines()[0], "rows": rows, **provenance()})


if __name__ == "__main__":
    main(*sys.argv[1:])
