"""A trained policy that people use: loaded from its folder it acts in a gymnasium environment as stage 4 measured it."""

import re
import shutil

import numpy as np
import pytest
from helpers import POLICY, RESULTS, ROOT, run_stage

from src.evaluation.evaluate import evaluate
from src.evaluation.results import read_result
from src.models.load import load_agent
from src.run.config import load_env
from src.run.errors import UserError
from src.run.files import read_json, write_json
from src.run.seeding import derive


def test_the_lines_of_the_readme(policy_root):
    """As printed, but for the folder of the policy."""
    readme = (ROOT / "README.md").read_text()
    lines = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "load_agent(" in block)
    assert len(lines.strip().splitlines()) <= 12
    names = {}
    exec(re.sub(r'load_agent\(".*?"\)', "load_agent(folder)", lines), names | {"folder": policy_root / POLICY}, names)
    assert names["episode"] == 3 and names["truncated"] and np.isfinite(names["reward"])


def play(folder, task, episodes, seed=0, row=0):
    """The lines of the README; the resets are those of stage 4. Returns of the episodes."""
    found = []
    agent = load_agent(folder)
    env = load_env("point_robot").make()
    for episode in range(episodes):
        observation, _ = env.reset(seed=derive(seed, "reset", task, row, episode) % 2**31, options={"task": task})
        agent.start(observation)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(agent.act())
            agent.observe(reward, observation)
            total, done = total + reward, terminated or truncated
        found.append(total)
    return found


def test_it_acts_as_it_was_measured(policy_root):
    """Few-shot: three warm-up episodes, then the one that counts. The first row of the first task, as a row of its own."""
    result = read_result(policy_root / RESULTS / "meta_dt+debug/few_shot-strict/seed_0.json")
    for number, task in enumerate(result["task_ids"][:2]):
        measured = [*result["warmup_returns"][number][0], result["returns"][number][0]]
        found = play(policy_root / POLICY, task, 4)
        near = {"atol": 0.1}  # another batch has other last bits, and stage 4 measures in bfloat16 where that pays
        np.testing.assert_allclose(found[0], measured[0], **near)
        if number == 0:  # of the first row the random choices are the same
            np.testing.assert_allclose(found, measured, **near)
    assert len({round(value, 6) for value in play(policy_root / POLICY, 45, 4)}) > 1


FLAGS = {
    "tried": ["--context", "tried", "--rescale_actions"],
    "probe": ["--explore", "probe", "--explore_steps", "2", "--context", "carried"],
    "zero_shot": ["--zero_shot"],
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_way_to_adapt_comes_with_it(name, model_root, tmp_path):
    """All rows at once through `evaluate`: what stage 4 wrote, to the last digit."""
    shutil.copytree(model_root, tmp_path / "root", ignore=shutil.ignore_patterns("meta_dt*", "results"))
    short = ["--steps", "6", "--eval_every", "6", "--precision", "float32", "--warmup_episodes", "2"]
    path = run_stage("train_meta_dt", tmp_path / "root", *short, *FLAGS[name])[0]
    result = read_result(path)
    folder = tmp_path / "root/saves/point_robot/random/meta_dt+debug" / ("zero_shot" if name == "zero_shot" else "few_shot")
    agent = load_agent(folder / "seed_0").agent
    few = name != "zero_shot"
    again = evaluate(agent, load_env("point_robot"), range(45, 50), 2, 2 if few else 0, 0, 2 if few else 0)
    for key in ("returns", "warmup_returns", "later_returns"):
        assert (key in again) == (key in result)
        np.testing.assert_array_equal(again.get(key, 0), result.get(key, 0))


def test_an_agent_starts_afresh_on_another_task(policy_root):
    agent, env = load_agent(policy_root / POLICY), load_env("point_robot").make()
    first = []
    for episode in range(3):
        observation, _ = env.reset(seed=0, options={"task": 3})
        if episode == 2:
            agent.new_task()
        agent.start(observation)
        first.append(agent.agent.act()[0])  # before it is clipped
        action = agent.act()
        assert action.shape == (2,) and env.action_space.contains(action)
        agent.observe(-1.0, env.step(action)[0])
        assert len(agent.lived) == (episode if episode < 2 else 0)
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])


def test_episodes_of_unequal_length_are_adapted_to(policy_root):
    agent = load_agent(policy_root / POLICY)
    rng = np.random.default_rng(0)
    for steps in (3, 20, 11):
        agent.start(rng.normal(size=2))
        for _ in range(steps):
            agent.act()
            agent.observe(-1.0, rng.normal(size=2))
    agent.start(rng.normal(size=2))
    assert [episode["lengths"].tolist() for episode in agent.lived] == [[3], [20], [11]]
    assert np.isfinite(agent.act()).all()


def test_what_is_no_agent_is_refused(policy_root, tmp_path):
    with pytest.raises(UserError, match=r"is no folder of a policy .*name one, for example saves"):
        load_agent(tmp_path)
    folder = shutil.copytree(policy_root / POLICY, tmp_path / "seed_0")
    document = read_json(folder / "agent.json")
    for change in ({"sha256": "0" * 64}, {"model": {"widht": 3}}, {"horizon": "many"}, {"surplus": 1}, {"world_model": []}):
        write_json(folder / "agent.json", document | change)
        with pytest.raises(UserError, match=r"holds no agent of train_meta_dt.py: give its command again") as error:
            load_agent(folder)
        assert "\n" not in str(error.value)
    shutil.copy(policy_root / POLICY / "agent.json", folder)
    data = (folder / "agent.safetensors").read_bytes()
    (folder / "agent.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"agent.safetensors is damaged"):
        load_agent(folder)
    assert len(data) < 1e6 and (folder / "agent.json").stat().st_size < 10_000
