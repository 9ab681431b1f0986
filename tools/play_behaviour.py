"""Film behaviour agents, one task each, side by side: the experts of a family, without noise.

    python -m tools.play_behaviour --env_type walker_rand_params --tasks 0 15 30 --output walkers.gif
    python -m tools.play_behaviour --env_type hopper_rand_params --record falls.json

Of robots that can fall it tells the step at which each one did. --record writes returns and falls of the tasks (default: all
training tasks) as JSON, without a film.
"""

import numpy as np
import torch

from envs.render import film, save_gif
from src.behaviour.policies import BehaviourPolicies
from src.behaviour.store import SOURCES, find_source
from src.evaluation.agent import PolicyAgent
from src.evaluation.batch import make_batch
from src.evaluation.method import RunSettings
from src.evaluation.rollout import returns, rollout
from src.run.command_line import next_command, parse_args, script_parser
from src.run.config import num_tasks
from src.run.environment import check_camera
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path, write_json
from src.run.flags import natural, positive_int
from src.run.provenance import provenance
from src.run.seeding import derive
from src.run.settings import pick
from tools.measure_references import expert
from tools.play import WIDTH, beside, panel


def make_parser():
    parser = script_parser(__doc__)
    parser.add_argument("--tasks", type=natural, nargs="+", help="task ids (default: the first training task; to record: all)")
    parser.add_argument("--behaviour", choices=SOURCES, default="auto", help="whose experts")
    parser.add_argument("--output", help="film (default: <env_type>-behaviour.gif, here)")
    parser.add_argument("--width", type=positive_int, default=WIDTH, help="pixels of a panel")
    parser.add_argument("--record", help="a JSON file to write instead of a film")
    return parser


@main_guard
def main(argv=None):
    args = parse_args(make_parser(), "play_behaviour", argv)
    run = pick(RunSettings, args)
    environment = run.env.make()
    tasks = args.tasks or list(range(*run.env.train_tasks))[: None if args.record else 1]
    if max(tasks) >= num_tasks(environment):
        raise UserError(f"--tasks {max(tasks)} does not exist: {run.env_type} has tasks 0 to {num_tasks(environment) - 1}")
    if not args.record:
        check_camera(run.env, "nothing can be filmed")
    command = next_command(run, "train_data_collection.py")
    source = find_source(run, args.behaviour, command)
    weights = [expert(source, run.env, task, command) for task in tasks]
    weights = {name: torch.stack([one[name] for one in weights]) for name in weights[0]}
    space = environment.action_space
    policies = BehaviourPolicies(weights, space.low, space.high, frame=source.frame(environment, tasks))
    seeds = [derive(run.seed, "film", task) % 2**31 for task in tasks]
    agent = PolicyAgent(lambda observations: policies.act(observations[:, None], deterministic=True)[:, 0])
    episode = rollout(agent, make_batch(run.env, tasks), seeds, run.env.max_episode_steps)
    falls, earned = first_falls(environment, episode["observations"]), returns(episode)
    for task, fall, total in zip(tasks, falls, earned, strict=True):
        told = "" if falls[0] is None else ", never falls" if fall < 0 else f", falls at step {fall}"
        print(f"task {task}: return {total:.6g}{told}")
    if args.record:
        told = {} if falls[0] is None else {"falls": [None if fall < 0 else int(fall) for fall in falls]}
        shown = {"env_type": run.env_type, "tasks": tasks, "returns": [round(float(total), 2) for total in earned], **told}
        write_json(args.record, shown | provenance())
        print(args.record)
        return
    camera, films = run.env.make("rgb_array"), []
    for row, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
        actions = iter(episode["actions"][row])
        films.append(film(camera, lambda _, actions=actions: next(actions), task, seed))
    output = args.output or f"{run.env_type}-behaviour.gif"
    with atomic_path(output) as temporary:
        shots = [
            [panel(image, f"task {task}", f"return {total:.4g}", width=args.width) for image, total in zip(*shown, strict=False)]
            for task, shown in zip(tasks, films, strict=True)
        ]
        shots = zip(*shots, strict=True)
        save_gif([beside(shot) for shot in shots], camera, temporary)
    camera.close()
    print(output)


def first_falls(environment, observations):
    """(B,) the step before which each robot of observations (B, T + 1, d_s) has fallen, -1 where none; None where none can."""
    if not hasattr(environment, "fallen"):
        return [None] * len(observations)
    rows, steps = observations.shape[:2]
    fallen = environment.fallen(observations.reshape(rows * steps, -1)).reshape(rows, steps)
    return np.where(fallen.any(1), fallen.argmax(1), -1)


if __name__ == "__main__":
    main()
