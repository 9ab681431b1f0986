"""The result files that come with the repository: what no reader of one file can see."""

from collections import defaultdict

import pytest
from helpers import ROOT

from src.evaluation.results import label
from src.report.results import read_results

# rows that are equal by construction: (method, regime) of each
EQUAL = {
    frozenset({("focal", "zero_shot"), ("idaq", "zero_shot")}),  # the same training; IDAQ differs from its second episode on
    frozenset({("dt", "few_shot"), ("dt", "zero_shot")}),  # it does not adapt, and Point-Robot always starts at the same point
}
DIRTY = {("point_robot_sparse", "borel+reduced")}  # runs of a checkout with changes; the report marks them


@pytest.fixture(scope="module")
def committed():
    found, faults = read_results(ROOT / "results")
    assert len(found) > 300 and not faults
    return found


def test_no_row_is_a_copy_of_another(committed):
    same = defaultdict(list)
    for result in committed:
        if "returns" in result:
            kind = (result[key] for key in ("env_type", "quality", "protocol", "validation", "fresh"))
            same[(*kind, str(result["task_ids"]), str(result["returns"]))].append(result)
    copies = [group for group in same.values() if len(group) > 1]
    assert copies  # of the pairs that are known
    for group in copies:
        names = [f"{label(result)}/{result['regime']}, seed {result['seed']}" for result in group]
        pair = frozenset((result["method"], result["regime"]) for result in group)
        plain = all(result["ablation"] == "none" and not result["variant"] for result in group)
        seeds = {result["seed"] for result in group}
        assert pair in EQUAL and len(group) == 2 and plain and len(seeds) == 1, f"{group[0]['env_type']}: {names}"


def test_runs_of_a_changed_checkout_are_those_known(committed):
    assert {(result["env_type"], label(result)) for result in committed if result["commit"].endswith("-dirty")} == DIRTY
