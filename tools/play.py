"""Film a trained policy on one task, its episodes side by side: how it adapts, in one picture.

    python -m tools.play trained/point_robot/replay/iql+compare --task 47
    python -m tools.play saves/cheetah_vel/replay/meta_dt+fast/zero_shot/seed_0 --task 45 --output cheetah.gif

The policy: a folder of `python -m tools.models export` or `pull`, a run's folder below saves/, or hf://name/model. It plays its
warm-up episodes and then the evaluated one, each a panel with the task, the episode and the return. What has a camera is filmed
(.gif, in real time); points in the plane are drawn (.png, earlier episodes in blue).
"""

import argparse
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.render import film, save_gif
from src.evaluation.evaluate import live
from src.evaluation.rollout import returns
from src.report.figures import draw_paths
from src.run.config import num_tasks
from src.run.devices import find_device
from src.run.environment import check_camera, has_camera
from src.run.errors import UserError, main_guard
from src.run.files import atomic_path
from src.run.flags import Parser, natural
from tools.models import describe, find_env, folder_of, read_trained

WIDTH, CAPTION, GAP = 240, 40, 4  # pixels: of an episode's panel, of the text above it, between two of them
PER_ROW = 5  # panels at most


@main_guard
def main(argv=None):
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("policy", help="folder of an exported policy or of a run, or hf://name/model")
    parser.add_argument("--task", type=natural, help="task id (default: the first test task)")
    parser.add_argument("--warmup_episodes", type=natural, help="episodes before the last one (default: as it was measured)")
    parser.add_argument("--seed", type=natural, help="of the resets (default: the policy's)")
    parser.add_argument("--output", help="file (default: <env_type>-task_<id>.gif or .png, here)")
    parser.add_argument("--config", help="settings file of an environment of your own")
    args = parser.parse_args(argv)
    with folder_of(args.policy) as folder:
        told = describe(folder)
        env = find_env(told, args.config)
        trained = read_trained(folder, told["method"], env, find_device("cpu"), told["settings"])
    environment = env.make(discrete=True)
    task = env.test_tasks[0] if args.task is None else args.task
    if task >= num_tasks(environment):
        raise UserError(f"--task {task} does not exist: {env.env_type} has tasks 0 to {num_tasks(environment) - 1}")
    camera = has_camera(environment)
    if not camera and environment.observation_space.shape != (2,):
        raise UserError(f"{env.env_name} has no camera, and is no point in the plane: there is nothing to draw")
    kind = "gif" if camera else "png"
    output = args.output or f"{env.env_type}-task_{task}.{kind}"
    if not output.endswith(f".{kind}"):
        raise UserError(f"--output {output}: {env.env_name} gives a file that ends in .{kind}")
    if camera:
        check_camera(env, "nothing can be filmed")
    warmup = told["warmup"] if args.warmup_episodes is None else args.warmup_episodes
    seed = told["seed"] if args.seed is None else args.seed
    episodes = [(seeds[0], episode) for _, seeds, episode in live(trained.agent(warmup), env, [task], 1, warmup + 1, seed)]
    names = [*(f"warm-up {number + 1}" for number in range(warmup)), "evaluated"]
    for name, (_, episode) in zip(names, episodes, strict=True):
        print(f"task {task}, {name}: return {returns(episode)[0]:.6g}")
    draw = film_episodes if camera else draw_episodes
    with atomic_path(output) as temporary:
        draw(env, task, names, episodes, temporary)
    print(output)


def draw_episodes(env, task, names, episodes, path):
    """The paths of episodes in the plane as a PNG. names: of the episodes; episodes: (seed of the reset, Episode of a row)."""
    goal = env.make(discrete=True).unwrapped.tasks.get("goal")
    paths = [episode["observations"][0, : episode["lengths"][0] + 1] for _, episode in episodes]
    panels = []
    for number, (name, (_, episode)) in enumerate(zip(names, episodes, strict=True)):
        earned = f"{returns(episode)[0]:.4g}".replace("-", "−")
        place = None if goal is None or np.shape(goal)[1:] != (2,) else np.asarray(goal[task])
        title = f"task {task}, {name}\nreturn {earned}"
        panels.append({"title": title, "goal": place, "warmup": paths[:number], "evaluation": [paths[number]]})
    path.write_bytes(draw_paths(panels, orange="this episode"))


def film_episodes(env, task, names, episodes, path):
    """Episodes side by side in front of the camera as a GIF; arguments as of `draw_episodes`. What they earn runs along."""
    camera, films = env.make("rgb_array"), []
    for seed, episode in episodes:
        actions = iter(episode["actions"][0])
        films.append(film(camera, lambda _, actions=actions: next(actions), task, int(seed)))
    length = max(len(images) for images, _ in films) + 1  # a last picture with the whole returns
    shots = [
        [panel(images[min(n, len(images) - 1)], f"task {task}, {name}", f"return {earned[min(n, len(earned) - 1)]:.4g}")
         for name, (images, earned) in zip(names, films, strict=True)]
        for n in range(length)
    ]  # fmt: skip
    save_gif([beside(shot) for shot in shots], camera, path)
    camera.close()


def panel(image, *lines, width=WIDTH):
    """One camera picture, `width` pixels wide, with lines of text above."""
    image = image.resize((width, round(image.height * width / image.width)))
    whole = Image.new("RGB", (width, image.height + CAPTION), "white")
    whole.paste(image, (0, CAPTION))
    ImageDraw.Draw(whole).multiline_text((6, 3), "\n".join(lines), fill="black", font=ImageFont.load_default(14))
    return whole


def beside(panels):
    """Pictures of one size in rows, as few and as equally long as may be."""
    width, height = (size + GAP for size in panels[0].size)
    rows = math.ceil(len(panels) / PER_ROW)
    columns = math.ceil(len(panels) / rows)
    whole = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "white")
    for place, image in enumerate(panels):
        whole.paste(image, (place % columns * width, place // columns * height))
    return whole


if __name__ == "__main__":
    main()
