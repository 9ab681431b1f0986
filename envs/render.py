"""Watch a policy: `record` writes one episode as an animated GIF (needs pillow, which matplotlib brings along)."""

from pathlib import Path

from PIL import Image

FRAMES_PER_SECOND, COLOURS = 10, 32  # of the file: ten seconds are about 0.8 MB


def record(env, policy, path, task=None, seed=None):
    """Run one episode of `env` and write it to `path`, a .gif played in real time.

    Args:
        env: a gymnasium environment made with render_mode="rgb_array".
        policy: function observation (d_s,) -> action (d_a,).
        task: task id for the reset; by default the environment keeps its task.
        seed: seed of the reset.

    Returns:
        The return of the episode. ValueError for another render mode.
    """
    if env.render_mode != "rgb_array":
        raise ValueError('record needs an environment made with render_mode="rgb_array"')
    steps_per_frame = max(1, round(env.metadata["render_fps"] / FRAMES_PER_SECOND))
    observation, _ = env.reset(seed=seed, options=None if task is None else {"task": task})
    frames, total, step, done = [], 0.0, 0, False
    while not done:
        if step % steps_per_frame == 0:
            frames.append(Image.fromarray(env.render()).quantize(COLOURS, dither=Image.Dither.NONE))
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total, step, done = total + reward, step + 1, terminated or truncated
    duration = 1000 * steps_per_frame / env.metadata["render_fps"]  # milliseconds
    frames[0].save(Path(path), save_all=True, append_images=frames[1:], duration=duration, loop=0, optimize=True)
    return total
