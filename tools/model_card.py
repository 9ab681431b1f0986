"""The page beside a trained policy: what it is, what it was trained on, what it earns, how to load it."""

import numpy as np
from gymnasium.spaces import Discrete

from src.evaluation.results import label
from src.report.statistics import decimals
from src.run.config import known_env_types


def card(config, env, measured, rows):
    """The model card, Markdown with the header that the Hugging Face hub reads."""
    made, training = config["made_from"], config["training"]
    warmup = max(regime["warmup"] for regime in config["regimes"].values())
    known = config["env_type"] if config["env_type"] in known_env_types() else None
    argument, flag = ("", "") if known else (', settings_file="SETTINGS.yaml"', " --config SETTINGS.yaml")
    sha256 = made.get("dataset_sha256") or made.get("data_sha256")
    protocol = f"{config['episodes']} adaptations per task"
    if "bamdp" in config["regimes"]:
        protocol += f" of {warmup + 1} episodes, the belief kept from one to the next; returns are means over all of them"
    elif warmup:
        protocol += f"; few-shot after {warmup} warm-up episodes of its own"
    discrete = "discrete=True" if isinstance(env.make(discrete=True).action_space, Discrete) else ""
    lines = [
        "---", "license: mit", "library_name: offline-meta-rl", "pipeline_tag: reinforcement-learning",
        "tags: [offline-rl, meta-reinforcement-learning, decision-transformer]", "---", "",
        f"# {label(config)} on {config['env_type']}, {config['quality']} data, seed {config['seed']}", "",
        f"A trained policy of `{config['method']}` (recipe `{config['recipe']}`) for the task family `{env.env_name}`.", "",
        "| | |", "|---|---|",
        f"| task family | {config['env_type']}: {describe_tasks(env)} |",
        f"| tested on | tasks {', '.join(map(str, config['task_ids']))}"
        f"{' (validation tasks, left out of training)' if config['validation'] else ''} |",
        f"| trained on | {config['quality']} data{f', SHA-256 `{sha256}`' if sha256 else ''} |",
        f"| privileges in training | {config['privileges']} |",
        f"| protocol | {config['protocol']}: {protocol} |",
        f"| training | {training.get('gradient_steps')} gradient steps, {training.get('parameters')} parameters |",
        f"| weights | {config['weights']} |",
        "| licence | MIT |", "",
        "| regime | table row when this was made: mean return, [95 % interval over seeds and tasks] | this policy |",
        "|---|---|---|",
    ]  # fmt: skip
    as_rows = all(rows[name]["same"] for name in rows)
    whose = f", and is the row of seed {config['seed']} under results/ to the last digit" if as_rows else ""
    for name in config["regimes"]:
        row, own = rows[name], np.mean(measured[name]["returns"])
        digits = decimals([row[key] or 0 for key in ("mean", "low", "high")], 2)
        interval = "" if row["low"] is None else f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
        seeds = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
        lines.append(f"| {name} | {row['mean']:.{digits}f}{interval}, {seeds} | {own:.6g} |")
    lines += [
        "", f"The last column was measured with the weights of this folder{whose}. To measure it again:", "", "```shell",
        f"python -m tools.models measure FOLDER{flag}", "```", "", "To act in the environment:", "",
        "```python", "from src.run.config import load_env", "from tools.models import from_pretrained", "",
        f'agent = from_pretrained("FOLDER"{argument})', f'env = load_env("{known or "SETTINGS.yaml"}").make({discrete})',
        f"for episode in range({warmup + 1}):  # the agent adapts to what it lives",
        f'    observation, _ = env.reset(seed=episode, options={{"task": {config["task_ids"][0]}}})',
        "    agent.start(observation)", "    done = False", "    while not done:",
        "        observation, reward, terminated, truncated, _ = env.step(agent.act())",
        "        agent.observe(reward, observation)", "        done = terminated or truncated", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def describe_tasks(env):
    """The task ranges of a family in words."""
    (first, end), (test, last) = env.train_tasks, env.test_tasks
    return f"training tasks {first} to {end - 1}, test tasks {test} to {last - 1}, episodes of {env.max_episode_steps} steps"
