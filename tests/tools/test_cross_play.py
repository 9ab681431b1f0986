"""Cross-play: figures by hand, and the command on the smallest family."""

import numpy as np
import pytest
from helpers import assert_refused

from src.run.files import read_json
from tools import cross_play


def test_figures_of_three_policies():
    """returns[p, t]: policy 0 is good everywhere, the others only at home; tasks 1 and 2 are alike."""
    mean = np.array([[10.0, 8, 7], [2, 12, 5], [0, 6, 9]])
    returns = mean[:, :, None] + np.array([0.0, -1, 1])
    found = cross_play.figures(returns, np.array([[0.0, 0], [3, 4], [3, 5]]), np.random.default_rng(0))
    assert found["own_policy"] == pytest.approx((10 + 12 + 9) / 3, abs=0.05)
    assert found["another_policy"] == pytest.approx((2 + 0 + 8 + 6 + 7 + 5) / 6, abs=0.05)
    assert found["policy_of_nearest_parameters"] == pytest.approx((2 + 6 + 5) / 3, abs=0.05)  # 1 on 0, 2 on 1, 1 on 2
    assert found["one_policy_for_all"] == 7.5 and found["best_other_policy"] == pytest.approx((2 + 8 + 7) / 3, abs=0.05)
    assert found["deviation_over_episodes"] == 1 and found["deviation_over_policies"] == 1
    assert found["best_of_1_tried"] == pytest.approx(found["another_policy"], abs=0.3)
    assert found["best_of_2_tried"] == found["best_of_8_tried"] == found["best_other_policy"]  # both rivals are tried


def test_the_command_writes_what_it_tells(tmp_path, capsys):
    path = tmp_path / "cross.json"
    flags = ["--env_type", "cheetah_dir", "--episodes", "2", "--output_dir", str(tmp_path), "--output", str(path)]
    cross_play.main(flags)
    document, said = read_json(path), capsys.readouterr().out
    assert document["tasks"] == [0, 1] and np.shape(document["returns"]) == (2, 2)
    assert document["own_policy"] > 500 > 0 > document["another_policy"]  # forwards and backwards
    assert f"own_policy {document['own_policy']}" in said and document["commit"]


def test_a_family_without_policies_is_refused(capsys):
    """There is no --behaviour here that could be left out."""
    message = "no behaviour policies of cheetah_vel_100 come with the repository: name another family"
    assert_refused(capsys, cross_play, ["--env_type", "cheetah_vel_100"], message)
