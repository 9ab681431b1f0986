"""Watch a policy: `record` writes one episode as an animated GIF (needs pillow, which matplotlib brings along)."""

from pathlib import Path

from PIL import Image

FRAMES_PER_SECOND, COLOURS = 10, 32  # of the file: ten seconds are about 0.8 MB


def record(env, policy, path, task=None, seed=None):
    """Run one episode of `env` and write it to `path`, a .gif played in real time.

    Args: as of `film`. Returns the return of the episode. Raises ValueError for another render mode.
    """
    images, returns = film(env, policy, task, seed)
    save_gif(images, env, path)
    return returns[-1]


def film(env, policy, task=None, seed=None):
    """Run one episode of `env` in front of its camera.

    Args:
        env: a gymnasium environment made with render_mode="rgb_array".
        policy: function observation (d_s,) -> action (d_a,).
        task: task id for the reset; by default the environment keeps its task.
        seed: seed of the reset.

    Returns:
        (images, returns): FRAMES_PER_SECOND pictures for each second of the simulator and what was earned before each of them;
        the last one of `returns` is the return of the episode, and belongs to no picture. ValueError for another render mode.
    """
    if env.render_mode != "rgb_array":
        raise ValueError('a film needs an environment made with render_mode="rgb_array"')
    observation, _ = env.reset(seed=seed, options=None if task is None else {"task": task})
    images, returns, total, step, done = [], [], 0.0, 0, False
    while not done:
        if step % _steps_per_frame(env) == 0:
            images.append(Image.fromarray(env.render()))
            returns.append(total)
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total, step, done = total + reward, step + 1, terminated or truncated
    return images, [*returns, total]


def save_gif(images, env, path):
    """Write pictures of `film` as a .gif that plays in the environment's real time, for ever."""
    duration = 1000 * _steps_per_frame(env) / env.metadata["render_fps"]  # milliseconds
    images = [image.quantize(COLOURS, dither=Image.Dither.NONE) for image in images]
    images[0].save(Path(path), "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True)


def _steps_per_frame(env):
    return max(1, round(env.metadata["render_fps"] / FRAMES_PER_SECOND))
