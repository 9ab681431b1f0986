"""The probe of contexts: the nearest centre by hand, and the command on the smallest family."""

import numpy as np
import pytest

import get_datasets
import train_context
from src.run.errors import UserError
from src.run.files import read_json
from tools import probe_contexts


def test_nearest_centres_by_hand():
    contexts = np.array([[0.0, 0], [2, 0], [10, 0], [12, 0]])
    centres = probe_contexts.task_centres(contexts, np.array([3, 3, 8, 8]), np.array([3, 8]))
    np.testing.assert_allclose(centres[1], [[1, 0], [11, 0]])
    new = np.array([[5.0, 0], [7, 0], [5, 0]])
    assert probe_contexts.score(new, np.array([3, 8, 8]), centres) == pytest.approx(2 / 3, abs=1e-4)


def test_every_task_gives_half_of_its_episodes():
    owners = np.array([3, 8, 3, 3, 8, 3, 3])
    assert probe_contexts.every_second(owners).tolist() == [True, True, False, True, False, False, True]
    with pytest.raises(UserError, match="task 8 has one episode"):
        probe_contexts.every_second(np.array([3, 3, 8]))


def test_the_command_writes_what_it_tells(tmp_path, capsys, monkeypatch):
    halves, summary = [], probe_contexts.summary

    def noted(model, episodes):
        halves.append({row.tobytes() for row in episodes.observations})
        return summary(model, episodes)

    monkeypatch.setattr(probe_contexts, "summary", noted)
    flags = ["--env_type", "cheetah_dir", "--data_type", "cross", "--output_dir", str(tmp_path)]
    get_datasets.main([*flags, "--capacity", "1600", "--workers", "1", "--task_id_end", "2"])
    with pytest.raises(SystemExit):
        probe_contexts.main(flags)
    assert "no world model in" in capsys.readouterr().err
    train_context.main([*flags, "--steps", "10", "--eval_every", "10", "--context_horizon", "0", "--no-tensorboard"])
    path = tmp_path / "probe.json"
    model = tmp_path / "saves/cheetah_dir/cross/context-context_horizon_0/seed_0"
    probe_contexts.main([*flags, "--episodes", "2", "--world_model", str(model), "--output", str(path)])
    document, said = read_json(path), capsys.readouterr().out
    assert document["tasks"] == 2 and document["chance"] == 0.5
    kinds = ("recorded", "own expert", "another's expert", "unseen policy", "random actions")
    assert tuple(document["accuracy"]) == kinds and all(0 <= value <= 1 for value in document["accuracy"].values())
    assert len(halves) == 2 and not halves[0] & halves[1]  # none is assigned to a centre that it made
    assert f"recorded {document['accuracy']['recorded']:.1%}" in said
