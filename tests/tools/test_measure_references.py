"""Levels of a family that brings its own policies, against episodes played one after the other."""

import json

import numpy as np
from helpers import ROOT, assert_refused

from src.evaluation.references import reference_levels
from src.run.config import read_env, read_yaml
from src.run.seeding import derive
from tools import measure_references

EXAMPLE = ROOT / "examples" / "reach.yaml"


def test_a_family_of_ones_own_overwrites_no_levels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure_references, "CONFIG_DIR", tmp_path)
    assert_refused(capsys, measure_references, ["--config", str(EXAMPLE)], "reach is not of configs/")
    assert not list(tmp_path.iterdir())


def test_written_policies_and_the_explicit_choice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure_references, "CONFIG_DIR", tmp_path)
    monkeypatch.setattr(measure_references, "is_published", lambda env: True)
    measure_references.main(["--config", str(EXAMPLE), "--eval_episodes", "2"])
    document = json.loads((tmp_path / "references" / "reach.json").read_text())
    levels = document["per_task"]
    env = read_env(EXAMPLE, read_yaml(EXAMPLE))
    environment = env.make()
    policy = environment.reference_policies(environment.tasks, range(16))["best_known"]

    def played(task, told):
        """Mean return of two episodes, from the starts of the reported levels."""
        total = 0.0
        for episode in range(2):
            observation, _ = environment.reset(seed=derive(0, "reference", task, episode) % 2**31, options={"task": task})
            for _ in range(15):
                action = np.clip(policy(observation[None], [told])[0], -1, 1).astype(np.float32)
                observation, reward, *_ = environment.step(action)
                total += reward
        return total / 2

    # tasks 12 to 15 validate, 16 to 19 test; a training task's own policy is no choice on it
    assert [value is None for value in levels["explicit_choice"]] == [True] * 12 + [False] * 8
    for task in (13, 17):
        best = max(played(task, told) for told in range(16) if told != task)
        np.testing.assert_allclose(levels["explicit_choice"][task], best, rtol=1e-5)
        np.testing.assert_allclose(levels["best_known"][task], played(task, task), rtol=1e-5)
        assert levels["trivial"][task] < levels["explicit_choice"][task]
    assert "explicit_choice" in capsys.readouterr().out

    monkeypatch.setattr("src.evaluation.references.CONFIG_DIR", tmp_path)
    monkeypatch.setattr("src.evaluation.references.is_published", lambda env: True)
    known = reference_levels(env, environment, [16, 17], episodes=1)
    assert known["explicit_choice"] == levels["explicit_choice"][16:18]
    assert "explicit_choice" not in reference_levels(env, environment, [0, 17], episodes=1)
