"""A Meta-DT as one TorchScript module: the same actions as the agent's, with torch alone."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from helpers import POLICY, ROOT, assert_refused, tiny_policy, tiny_world_model

from src.evaluation.exploration import ExploringAgent
from src.models.meta_dt_agent import Adaptation, MetaDTAgent
from src.models.torchscript import episode_module
from src.run.errors import UserError
from tools import models

STEPS, HISTORY, PROMPT = 11, 5, 3
SPACE = Box(np.float32([-0.5, -0.2]), np.float32([0.4, 0.3]))
KINDS = {
    "window": {},
    "whole episodes": {"world": {"horizon": 0}},
    "no context": {"context": "none"},
    "carried": {"context": "carried"},
    "no prompt": {"prompt_select": "none"},
    "zero-shot": {"lived": 0},
    "no return": {"policy": {"condition_size": 0}, "target": None},
}


def make_agent(world=None, policy=None, lived=2, target=-5.0, **settings):
    """An Agent of one row, adapted to `lived` random episodes."""
    rng = np.random.default_rng(0)
    agent = MetaDTAgent(
        tiny_policy(**(policy or {})), tiny_world_model(**(world or {})), HISTORY, PROMPT, target, Adaptation(**settings),
        warmup=lived,
    )  # fmt: skip
    sizes = {"observations": (1, STEPS + 1, 2), "actions": (1, STEPS, 2), "rewards": (1, STEPS)}
    episodes = [{key: rng.normal(size=size).astype(np.float32) for key, size in sizes.items()} for _ in range(lived)]
    agent.adapt([])
    if lived:
        agent.adapt([episode | {"lengths": np.array([STEPS])} for episode in episodes])
    return agent


@pytest.mark.parametrize("kind", KINDS)
def test_it_acts_as_the_agent(kind, tmp_path):
    """Two episodes, longer than history and window; what the module is told at a first step as the reward counts for nothing."""
    agent, rng = make_agent(**KINDS[kind]), np.random.default_rng(1)
    episode_module(agent, SPACE).save(str(tmp_path / "policy.pt"))
    module, seen = torch.jit.load(str(tmp_path / "policy.pt")), []
    for episode in range(2):
        observation, reward = rng.normal(size=2).astype(np.float32), 7.0 * episode
        agent.start(observation[None])
        module.start()
        for _ in range(STEPS):
            action = np.clip(agent.act(), SPACE.low, SPACE.high)
            found = module(torch.from_numpy(observation), reward)
            np.testing.assert_allclose(found.numpy(), action[0], atol=1e-5)
            seen.append(action[0])
            observation, reward = rng.normal(size=2).astype(np.float32), float(rng.normal())
            agent.observe(action, np.float32([reward]), observation[None])
    assert np.std(seen, 0).min() > 1e-3  # not the bounds alone


def test_a_file_of_a_policy_needs_torch_alone(policy_root, tmp_path, monkeypatch):
    """The example, in a folder of its own, where nothing of ours can be imported."""
    models.main(["torchscript", str(policy_root / POLICY), str(tmp_path / "policy.pt"), "--task", "47"])
    example = (ROOT / "examples/act.py").read_text()
    (tmp_path / "act.py").write_text(example)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run([sys.executable, "act.py", "policy.pt"], cwd=tmp_path, capture_output=True, text=True, check=False)
    first, second = re.findall(r"^return (\S+)$", done.stdout, re.M)
    assert done.returncode == 0 and first == second and float(first) < 0, done.stderr
    assert len(example.splitlines()) < 25


def test_what_cannot_be_a_module_is_refused(policy_root, tmp_path, capsys):
    agent = make_agent(lived=0)
    exploring = ExploringAgent(agent, SPACE, 2, False, 0, np.random.default_rng)
    exploring.adapt([])
    with pytest.raises(UserError, match="begins the episode by exploring"):
        episode_module(exploring, SPACE)
    iql = str(ROOT / "trained/point_robot/replay/iql+compare")
    out = str(tmp_path / "policy.pt")
    assert_refused(capsys, models, ["torchscript", iql, out], "only policies of Meta-DT")
    run = str(policy_root / POLICY)
    assert_refused(capsys, models, ["torchscript", run, out, "--task", "1000"], "--task 1000 does not exist")
    assert not list(tmp_path.iterdir())


def test_the_file_of_a_policy_in_bfloat16_computes_in_float32(tmp_path):
    """A committed policy: after the same warm-up episodes, lived in float32, the module acts as the agent."""
    folder = str(ROOT / "trained/point_robot/replay/meta_dt+fast")
    models.main(["torchscript", folder, str(tmp_path / "policy.pt"), "--task", "47"])
    module = torch.jit.load(str(tmp_path / "policy.pt"))
    told = models.describe(folder)
    env = models.find_env(told)
    agent = models.read_trained(folder, told["method"], env, torch.device("cpu"), told["settings"]).agent(told["warmup"])
    agent.agent.dtype = None
    agent.adapt([episode for _, _, episode in models.live(agent, env, [47], 1, told["warmup"], told["seed"])])
    rng, observation, reward = np.random.default_rng(0), np.zeros(2, np.float32), 0.0
    module.start()
    agent.start(observation[None])
    for _ in range(15):
        action = agent.act()
        np.testing.assert_allclose(module(torch.from_numpy(observation), reward).numpy(), action[0], atol=1e-5)
        observation, reward = rng.normal(size=2).astype(np.float32), float(rng.normal())
        agent.observe(action, np.float32([reward]), observation[None])
