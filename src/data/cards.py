"""The card of a dataset: who acted, on what knowledge, where and from what it was made, in a page that people read."""

import numpy as np

from src.run.files import atomic_path


def write_card(path, trajectories, train_tasks):
    """Write the card of Trajectories that were saved (their metadata tell all) as markdown. train_tasks: (first, last + 1)."""
    with atomic_path(path) as temporary:
        temporary.write_text(card(trajectories, train_tasks), encoding="utf-8", errors="backslashreplace")


def card(trajectories, train_tasks):
    """The text of the card; a function of the dataset alone. What an entry of the provenance does not say is left out."""
    metadata, ids = trajectories.metadata, trajectories.task_ids
    training = (ids >= train_tasks[0]) & (ids < train_tasks[1])
    lines = [
        f"# {metadata['env_type']}, {metadata['quality']}",
        "",
        f"- Environment: {metadata['env_name']} (`{metadata['entry_point']}`), up to {metadata['max_episode_steps']} steps",
        f"- Simulator: {metadata.get('simulator') or 'that of the imported data, or the code of the environment itself'}",
        f"- Size: {metadata['total_episodes']:,} episodes of {len(trajectories.tasks)} tasks, {metadata['total_steps']:,} steps",
        f"- Returns: {_returns(trajectories.returns, training)}",
        f"- SHA-256 of the arrays and the simulator's version: `{metadata['sha256']}`",
    ]
    for entry in metadata["provenance"]:
        lines += ["", f"## {_tasks(entry['task_ids'])}", "", *_entry(entry)]
    return "\n".join(lines) + "\n"


def _entry(entry):
    """Lines about what one command made."""
    if "rule" in entry:
        yield f"- Rule: {entry['rule']}"
    if "imported_from" in entry:
        files = sorted({f"{name} (SHA-256 `{sha}`)" for name, sha in entry["imported_from"].values()})
        yield f"- Who acted: not known here, imported from {', '.join(files)}"
    if "actors" in entry:
        yield f"- Who acted: {entry['actors']}"
        yield f"- On what knowledge: {entry['knowledge']}"
    if "policies_sha256" in entry:
        yield f"- SHA-256 of the policies: `{entry['policies_sha256']}`"
    if entry.get("behaviour"):
        facts = list(entry["behaviour"].values())
        yield _scripted(facts) if entry.get("policies") == "scripted" else _levels(facts)
    if "command" in entry:
        yield f"- Made by `{entry['command']}`, seed {entry['seed']}, commit {entry['commit']}, {entry['hardware']}"
        yield "- Versions: " + ", ".join(f"{name} {version}" for name, version in entry["versions"].items())


def _scripted(facts):
    """The line about scripted policies: how wrong they were about their task, and how noisily they acted."""
    names = ", ".join(sorted({fact["policy"] for fact in facts}))
    error, noise = ([value for fact in facts for value in fact[key]] for key in ("goal_error", "action_noise"))
    return (
        f"- Levels of {names}, standard deviations: wrong about its task by {min(error):.4g} to {max(error):.4g} m per axis, "
        f"noise of {min(noise):.4g} to {max(noise):.4g} half ranges of an action"
    )


def _levels(facts):
    """The line about the policies that played: their measured level, and where it lies between random and expert."""
    random, expert = (np.mean([fact[f"{name}_return"] for fact in facts]) for name in ("random", "expert"))
    played = np.mean([np.average(fact["checkpoint_returns"], weights=fact["checkpoint_episodes"]) for fact in facts])
    share = f", {(played - random) / (expert - random):.0%} of the way from random to expert" if expert > random else ""
    return (
        f"- Levels, measured before, each policy on its own task: random {random:.4g}, expert {expert:.4g}, "
        f"those that played {played:.4g}{share}"
    )


def _returns(returns, training):
    parts = {"training": returns[training], "other": returns[~training]}
    return "; ".join(f"mean {values.mean():.4g} on {name} tasks" for name, values in parts.items() if len(values))


def _tasks(ids):
    if len(ids) == 1:
        return f"Task {ids[0]}"
    return (
        f"Tasks {ids[0]} to {ids[-1]}" if list(ids) == list(range(ids[0], ids[-1] + 1)) else f"Tasks {', '.join(map(str, ids))}"
    )
