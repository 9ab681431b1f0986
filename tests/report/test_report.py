"""The report on a synthetic tree of result files: numbers by hand, faults named, every kind of environment drawn."""

import base64
import csv
import json
import os
import re
import struct

import numpy as np
import pytest
from helpers import ROOT
from matplotlib.figure import Figure

from src.evaluation.results import PER_TASK, PICTURES, write_result
from src.report import figures, pictures, tables
from src.report.overview import budget_table, csv_text, improvement_table, main_tables, published_table, records
from src.report.results import (
    chosen_scores,
    common_curve,
    episode_scores,
    group_results,
    is_current,
    read_results,
    reference_levels,
    scores_of,
)
from src.report.verdicts import verdicts
from src.run.errors import UserError
from src.run.files import read_json
from tools import report

GOALS = {45: [0.8, 0.3], 46: [-0.5, 0.7], 47: [-0.7, -0.4], 48: [0.2, -0.9], 49: [0.55, 0.75]}
REFERENCE = {
    "trivial": [-17.1, -17.2, -16.1, -18.4, -18.6],
    "task_blind": [-15.8, -16.4, -15.9, -17.3, -17.0],
    "dataset_mean": [-11.0, -12.2, -11.5, -12.8, -12.0],
    "dataset_best": [-6.1, -6.0, -5.2, -6.8, -6.4],
    "best_known": [-3.2, -2.9, -2.6, -3.5, -3.4],
}


FIELDS = (
    "reference", "curve", "task_parameters", "normalisation", "variant", "validation", "fresh", "privileges", "probe", "errors"
)  # fmt: skip


def put(root, env_type, quality, name, regime, protocol, seed, /, **content):
    """One result file, named as in the tables ("meta_dt+fast-no_context"); `content` adds to its facts. Returns its path."""
    method, _, recipe = name.partition("-")[0].partition("+")
    measured = {key: content[key] for key in (*PER_TASK, *PICTURES) if key in content}
    training = {
        key: content[key] for key in ("gradient_steps", "wall_clock_s", "environment_steps", "parameters") if key in content
    }
    facts = {"privileges": "none", **{key: content[key] for key in FIELDS if key in content}}
    ids = [] if regime == "diagnostics" else content.get("task_ids", [45, 46])
    measured = measured if regime == "diagnostics" else {"returns": [[1.0, 3.0], [4.0]], **measured}
    written = write_result(
        root.parent, env_type, quality, method=method, recipe=recipe or "paper", ablation=name.partition("-")[2] or "none",
        regime=regime, protocol=protocol, seed=seed, task_ids=ids, measured=measured, training=training,
        made_from={"dataset_sha256": content.get("data", "ab12" * 16)}, config=content.get("config", {}), folder=root.name,
        directory=root.parent / "saves" / env_type / f"{name}-{regime}-{protocol}-{seed}", **facts,
    )  # fmt: skip
    document = read_json(written)
    own = {"command": f"python train.py --env_type {env_type} --seed {seed}", "commit": "0123456789-dirty"}
    written.write_text(json.dumps({**document, **own, "hardware": content.get("hardware", "Some CPU, 2 cores")}))
    return written


def walk(target, generator):
    """A noisy walk of 20 steps towards target -> [[x, y], ...21]."""
    path = [np.zeros(2)]
    for _ in range(20):
        path.append(path[-1] + np.clip(np.asarray(target) - path[-1], -0.1, 0.1) + generator.normal(0, 0.012, 2))
    return np.round(path, 3).tolist()


def write_point_robot(root, method, seeds, level, protocols=("strict",)):
    """Zero-shot and few-shot results of a method whose evaluation return is about `level`."""
    for seed in range(seeds):
        generator = np.random.default_rng([seed, len(method)])
        steps = list(range(0, 2001, 200))
        rise = 1 - np.exp(-np.array(steps) / 500)
        common = {
            "task_ids": list(GOALS),
            "reference": REFERENCE,
            "gradient_steps": 2000,
            "wall_clock_s": 210 + 7 * seed,
            "hardware": "Some CPU, 2 cores",
            "commit": "0123456789-dirty",
            "task_parameters": {str(task): {"goal": goal} for task, goal in GOALS.items()},
        }
        for protocol in protocols:
            for regime, drop in (("zero_shot", 4.5), ("few_shot", 0)):
                final = level - drop - (protocol == "paper") * 0.4
                returns = final + generator.normal(0, 0.7, (5, 1)) + generator.normal(0, 0.3, (5, 4))
                curve = {"gradient_steps": steps}
                for key, shift in (("train_return", 1.0), ("validation_return", 0.3), ("test_return", 0)):
                    curve[key] = (-17 + (final + shift + 17) * rise + generator.normal(0, 0.35, len(steps))).tolist()
                curve["validation_return"][3] = None
                more = {}
                if regime == "few_shot":
                    shape = (5, 4, 3)
                    warmup = np.array([level - 6, level - 1.2, level - 0.6]) + generator.normal(0, 0.6, shape)
                    ends = [[0, 0], [0.5, 0.5], [0.9, 0.9], [1, 1], [1, 1]]  # how near the goal each episode aims
                    walks = {t: [walk(np.array(g) * e, generator) for e in ends] for t, g in GOALS.items()}
                    paths = {str(t): {"warmup": w[:3], "evaluation": w[3:]} for t, w in walks.items()}
                    more = {"warmup_returns": warmup.tolist(), "trajectories": paths}
                put(
                    root, "point_robot", "medium", method, regime, protocol, seed,
                    returns=returns.tolist(), curve=curve, **common, **more,
                )  # fmt: skip


def write_online(root, method, seed, final, **content):
    """A run that learned online from a pre-trained policy of return 1500."""
    shared = {"task_ids": [0], "reference": {"random": [20.0], "dataset_mean": [1400.0], "expert": [3220.0]}}
    shared["normalisation"] = {"minimum": 20.0, "maximum": 3220.0, "source": "our own expert"}
    for regime, value in (("pretrained", 1500.0), ("finetuned", final)):
        steps = [0, 900 + seed, 2000 - seed] if regime == "finetuned" else [0, 0, 0]
        curve = {
            "gradient_steps": [100, 200, 300],
            "environment_steps": steps,
            "test_return": [1500.0, (1500 + value) / 2, value],
            "entropy": [None, -2.0, -3.0],
            "temperature": [None, 0.1, 0.09],
        }
        more = {"curve": curve, "environment_steps": steps[-1], **shared, **content}
        put(root, "gym_hopper", "medium", method, regime, "strict", seed, returns=[[value, value]], **more)


def test_online_runs_have_normalised_scores_and_curves_over_environment_steps(tmp_path):
    for seed, final in ((0, 2900.0), (1, 3540.0)):
        write_online(tmp_path, "online_dt", seed, final)
    write_online(tmp_path, "online_dt-no_entropy", 0, 1620.0)
    (section,) = group_results(read_results(tmp_path)[0])
    table = tables.normalised_table(section)
    scores = {(row[0], row[1]): row[2].split(" ")[0] for row in table.rows}
    assert scores["online_dt", "pretrained"] == "46.2" and scores["online_dt", "finetuned"] == "100.0"  # (90 + 110) / 2
    assert scores["online_dt-no_entropy", "finetuned"] == "50.0"
    assert "0 = 20.0, 100 = 3220.0: our own expert" in table.rows[0][-1]
    assert {row[0]: row[2] for row in table.references} == {"random": "0.0", "dataset_mean": "43.1", "expert": "100.0"}
    styles = figures.method_styles(section.methods)
    names = [picture.name for picture in pictures.section_pictures(section, styles)[0]]
    online = [f"gym_hopper-medium-online-{phase}-strict.png" for phase in ("finetuned", "pretrained")]
    assert names == ["gym_hopper-medium-curves.png", *online]
    steps, values = common_curve(section.runs["finetuned", "strict"]["online_dt"], "temperature", "environment_steps")
    assert values.shape == (2, len(steps)) and steps[0] == 901 and steps[-1] == 1999


def write_diagnostics(root, env_type, name, parameters, seed=0):
    """A world model whose contexts are a rotation of the task parameters plus noise."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, len(parameters), 400)
    chosen = np.asarray(parameters)[ids]
    points = np.column_stack([chosen[:, 0] - chosen[:, -1], chosen.sum(1)]) + generator.normal(0, 0.12, (400, 2))
    put(
        root, env_type, "medium", name, "diagnostics", None, seed,
        errors={"reward_rmse": 0.052, "state_rmse": 0.0031, "reward_std": 0.41, "state_std": 0.52},
        probe={
            "dataset": {"r2": 0.97},
            "random_walk": {"r2": 0.61},
        },
        embedding={"points": points.tolist(), "task_ids": ids.tolist(), "task_parameters": dict(zip(
            map(str, range(len(parameters))), np.asarray(parameters).tolist(), strict=True))},
    )  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Result files of four environments that have little in common."""
    root = tmp_path_factory.mktemp("data") / "results"
    write_point_robot(root, "meta_dt", 3, -8.3, ("strict", "paper"))
    write_point_robot(root, "meta_dt+fast", 5, -5.0)
    write_point_robot(root, "meta_dt-no_context", 1, -11.0)
    write_point_robot(root, "prompt_dt", 3, -9.6)
    goals = np.random.default_rng(5).uniform(-1, 1, (50, 2))
    for name in ("context", "context+fast"):
        write_diagnostics(root, "point_robot", name, goals)
    write_diagnostics(root, "cheetah_vel", "context", np.linspace(0.1, 3, 50)[:, None])
    generator = np.random.default_rng(1)
    for seed in range(2):
        put(
            root, "cheetah_vel", "medium", "meta_dt", "zero_shot", "strict", seed,
            returns=generator.normal(-95, 6, (2, 3)).tolist(), reference={"trivial": [-300, -190], "task_blind": None},
        )  # fmt: skip
        corners = {task: np.sign(goal) * 0.9 for task, goal in list(GOALS.items())[:2]}
        put(
            root, "gridworld", "mixed", "borel", "bamdp", "strict", seed,
            returns=(np.array([2.0, 7, 9, 9.5]) + generator.normal(0, 0.3, (2, 4))).tolist(),
            trajectories={str(t): [walk(g * e, generator) for e in (-0.6, 0.5, 1, 1)] for t, g in corners.items()},
            reference={"best_known": [10.0, 9.0], "bayes_optimal": [8.0, 8.0]},
        )  # fmt: skip
        for regime, value in (("pretrained", 1800), ("finetuned", 2600)):
            put(
                root, "gym_hopper", "medium", "online_dt", regime, "strict", seed,
                task_ids=[0], returns=[generator.normal(value, 90, 10).tolist()],
            )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def made(tree):
    """The output folder of one full report."""
    output = tree.parent / "report"
    report.main(["--results", str(tree), "--output", str(output)])
    return output


# ----------------------------------------------------------------------------------------------------------- numbers


def one_section(root):
    [section] = group_results(read_results(root)[0])
    return section


def test_scores_and_cells_by_hand(tmp_path):
    put(tmp_path, "toy", "medium", "meta_dt", "zero_shot", "strict", 0, reference={"best_known": [5.0, 7.0]})
    put(tmp_path, "toy", "medium", "other", "zero_shot", "strict", 0, returns=[[6.0], [8.0]], success=[[1], [0]])
    section = one_section(tmp_path)
    [column] = section.runs.values()
    np.testing.assert_array_equal(scores_of(column["meta_dt"]), [[2.0, 4.0]])
    np.testing.assert_array_equal(reference_levels(column)["best_known"], [5.0, 7.0])
    table = tables.score_table(section)
    assert table.headers == ["method", "zero_shot, strict protocol", "privileges"]
    assert [row[:2] for row in table.rows] == [
        ["meta_dt", "3.00\nmean 3.00, 1 seed"],
        ["other", "7.00 ★\nmean 7.00, 1 seed, success 50%"],
    ]
    assert table.references == [["best_known", "6.00\nmean 6.00", tables.NONE]]


def test_columns_that_say_nothing_are_left_out(tmp_path):
    put(tmp_path, "toy", "medium", "meta_dt", "zero_shot", "strict", 0, wall_clock_s=90)
    *_, details, commands = tables.section_tables(one_section(tmp_path))
    assert details.headers == ["method", "regime", "seeds", "episodes per task", "20th percentile"]
    assert commands.headers == ["method", "regime", "time per run", "hardware", "commit", "command"]
    assert commands.rows[0][2] == "1.5 min"


def test_tiny_returns_are_no_zeros_in_the_report(tmp_path):
    put(tmp_path, "dust", "log", "meta_dt+fast", "few_shot", "strict", 0, returns=[[1e-6, 3e-6], [4e-6]])
    [[_, cell, _]] = tables.score_table(one_section(tmp_path)).rows
    assert cell.startswith("0.0000030\nmean 0.0000030, 1 seed")


def test_intervals_appear_with_two_seeds(tmp_path):
    for seed, value in enumerate((1.0, 3.0)):
        put(tmp_path, "toy", "medium", "meta_dt", "few_shot", "strict", seed, returns=[[value], [value]])
    [[_, cell, _]] = tables.score_table(one_section(tmp_path)).rows
    assert cell == "2.00 [1.00, 3.00]\nmean 2.00 [1.00, 3.00], 2 seeds"


def test_episodes_on_the_task(tmp_path):
    warmups = [[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], [[0.0, 0.0, 0.0], [0.0, 2.0, 4.0]]]
    put(tmp_path, "toy", "medium", "meta_dt", "few_shot", "strict", 0, warmup_returns=warmups, returns=[[1.0, 3.0], [4.0, 4.0]])
    put(tmp_path, "toy", "medium", "borel", "bamdp", "strict", 0, returns=[[1.0, 5.0], [3.0, 7.0]])
    section = one_section(tmp_path)
    runs = section.runs["few_shot", "strict"]["meta_dt"]
    np.testing.assert_array_equal(episode_scores(runs, "few_shot"), [[[2, 3, 4], [0, 1, 2]]])
    rows = {row[0]: row[2:6] for row in tables.episode_table(section).rows}
    assert rows["meta_dt"] == ["1.00", "2.00", "3.00", "3.00"]
    assert rows["borel"] == ["2.00", "6.00", "—", "—"]


def test_accepted_and_rejected_episodes_are_apart(tmp_path):
    warmups = [[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], [[0.0, 0.0, 0.0], [0.0, 2.0, 4.0]]]
    accepted = [[[0, 1, 1], [0, 0, 1]], [[0, 1, 1], [0, 1, 1]]]
    more = {"warmup_returns": warmups, "returns": [[1.0, 3.0], [4.0, 4.0]]}
    put(tmp_path, "toy", "medium", "idaq", "few_shot", "strict", 0, accepted=accepted, **more)
    put(tmp_path, "toy", "medium", "focal", "few_shot", "strict", 0, **more)
    section = one_section(tmp_path)
    methods = section.runs["few_shot", "strict"]
    taken, left = chosen_scores(methods["idaq"])
    np.testing.assert_array_equal(taken, [np.nan, (2 + 0 + 2) / 3, 3])  # of the first none, of the last all
    np.testing.assert_array_equal(left, [1, 4, np.nan])
    assert chosen_scores(methods["focal"]) is None
    styles = figures.method_styles(["idaq", "focal"])
    (picture,) = pictures.adaptation_pictures(section, styles)
    assert "Triangles" in picture.caption
    put(tmp_path / "b", "toy", "medium", "focal", "few_shot", "strict", 0, **more)
    (other,) = pictures.adaptation_pictures(one_section(tmp_path / "b"), styles)
    assert "Triangles" not in other.caption


def test_curves_are_joined_where_every_seed_has_values():
    long = {"gradient_steps": [0, 10, 20, 30], "test_return": [0.0, 10.0, None, 30.0]}
    short = {"gradient_steps": [10, 25], "test_return": [1.0, 4.0]}
    steps, values = common_curve([{"curve": long}, {"curve": short}, {}], "test_return")
    np.testing.assert_array_equal(steps, [10, 25])
    np.testing.assert_array_equal(values, [[10, 25], [1, 4]])
    assert common_curve([{}, {"curve": {}}, {"curve": {"gradient_steps": [1], "test_return": []}}], "test_return") is None


def test_last_chosen_and_best_point():
    curve = {"gradient_steps": [1, 2, 3], "test_return": [5.0, 3.0, 4.0], "validation_return": [0.0, 9.0, 1.0]}
    assert tables._curve_points([{"curve": curve}], 1) == "4.0 / 3.0 / 5.0"


# ------------------------------------------------------------------------------------------------------------ faults


def test_files_that_cannot_be_shown_are_left_out_and_named(tmp_path, capsys):
    root = tmp_path / "results"
    good = put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 0)
    deep = put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 1)
    wrong = put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 2)
    cut = put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 3)
    huge = put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 4)
    copy = good.with_name("copy.json")
    copy.write_text(good.read_text())
    deep.write_text("[" * 300_000)
    wrong.write_text(json.dumps(read_json(wrong)).replace("[1.0, 3.0]", '["1.0", 3.0]'))
    cut.write_text(cut.read_text()[:50])
    huge.write_text(huge.read_text() + " " * (17 << 20))
    report.main(["--results", str(root), "--output", str(tmp_path / "report"), "--table_only"])
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 5
    for path, reason in (
        (copy, "key 'seed' repeats"), (good.with_name("seed_0.json"), "copy.json"), (deep, "nested too deeply"),
        (wrong, "key 'tasks.returns' must be"), (cut, "is not valid JSON"), (huge, "more than 16 MiB"),
    ):  # fmt: skip
        assert any(str(path) in note and reason in note for note in notes) or path.name in ("copy.json", "seed_0.json")
    results, faults = read_results(root)
    assert [result["seed"] for result in results] == [0] and len(faults) == 5
    for path in (good, copy):
        path.unlink()
    with pytest.raises(UserError, match=r"\(and 3 more\)"):
        read_results(root)


def test_a_folder_may_have_any_name(tmp_path):
    """Names of files are bytes; those of faults stand on the page."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 0)
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 1).write_text("{")
    report.main(["--results", str(root), "--output", str(tmp_path / "report")])
    for name in ("index.html", "tables.md"):
        assert re.search(r"caf\\udce9/\S*seed_1.json is not valid JSON", (tmp_path / "report" / name).read_text())


def test_a_picture_that_cannot_be_drawn_costs_itself_alone(tmp_path, capsys):
    root = tmp_path / "results"
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 0, warmup_returns=[[[1.0], [2.0]], [[3.0]]])
    put(root, "toy", "medium", "context", "diagnostics", None, 0, embedding={"points": "none"})
    report.main(["--results", str(root), "--output", str(tmp_path / "report")])
    assert "toy · medium: context pictures are left out" in capsys.readouterr().err
    page = (tmp_path / "report/index.html").read_text()
    assert "context pictures are left out" in page and (tmp_path / "report/toy-medium-adaptation.png").exists()


def test_families_with_one_task_and_without_parameters_are_drawn(tmp_path, capsys):
    root = tmp_path / "results"
    for env_type, parameters in (("gym_hopper", []), ("lone", [0.5])):
        embedding = {"points": [[0.0, 1.0], [1.0, 0.0]], "task_ids": [0, 0], "task_parameters": {"0": parameters}}
        put(root, env_type, "medium", "context", "diagnostics", None, 0, embedding=embedding, probe={"dataset": {"r2": None}})
        put(root, env_type, "medium", "meta_dt", "few_shot", "strict", 0, task_ids=[0], returns=[[1.0]])
    report.main(["--results", str(root), "--output", str(tmp_path / "report")])
    assert "left out" not in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "gym_hopper-medium-context.png", "lone-medium-context.png"
    }  # fmt: skip


def test_what_does_not_belong_together_stands_apart(tmp_path):
    root = tmp_path / "results"
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 0)
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 1, task_ids=[1, 2])
    put(root, "toy", "medium", "other", "few_shot", "strict", 0, validation=True)
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 0, fresh=True)
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 2, data="cd34" * 16)
    first, second = group_results(read_results(root)[0])
    assert (first.name, second.name) == ("toy · medium (data ab12ab12)", "toy · medium (data cd34cd34)")
    assert {column: {name: len(runs) for name, runs in methods.items()} for column, methods in first.runs.items()} == {
        ("few_shot", "strict", 1): {"meta_dt": 1}, ("few_shot", "strict", 2): {"meta_dt": 1},
        ("few_shot", "strict", "fresh"): {"meta_dt": 1}, ("few_shot", "strict", "validation"): {"other": 1},
    }  # fmt: skip
    assert len(second.runs["few_shot", "strict"]["meta_dt"]) == 1
    (joined,) = group_results(read_results(root)[0], join_data=True)
    assert joined.name == "toy · medium"


def test_methods_are_ranked_among_those_that_were_given_the_same(tmp_path):
    root, reference = tmp_path / "results", {"task_blind": [0.0, 0.0], "best_known": [10.0, 10.0]}
    for name, given, value in (("meta_dt", "reward function", 8.0), ("a", "none", 5.0), ("b", "none", 4.0)):
        returns = [[value], [value]]
        put(root, "toy", "medium", name, "few_shot", "strict", 0, privileges=given, returns=returns, reference=reference)
    put(root, "toy", "medium", "b", "few_shot", "strict", 1, privileges="task parameters", returns=[[9.0], [9.0]])
    section = one_section(root)
    table = tables.score_table(section)
    cells = {row[0]: (row[1].split("\n")[0], row[2]) for row in table.rows}
    assert cells == {
        "meta_dt": ("8.00", "reward function"), "a": ("5.00 ★", tables.NONE), "b (none)": ("4.00", tables.NONE),
        "b (task parameters)": ("9.00", "task parameters"),
    }  # fmt: skip
    table = main_tables(records([section]))["Few-shot"]
    assert table.headers == ["method", "given", "toy\nmedium"]
    assert table.rows == [
        ["a", tables.NONE, "0.50 ★\n1 seed"], ["b (none)", tables.NONE, "0.40\n1 seed"],
        ["meta_dt", "reward function", "0.80\n1 seed"], ["b (task parameters)", "task parameters", "0.90\n1 seed"],
    ]  # fmt: skip
    (line,) = verdicts(records([section]), "Few-shot")[1]
    assert "a with 0.50 leads, b (none) is 0.10 behind (one seed: not sure)" in line
    assert "given the reward function, meta_dt with 0.80 (ranked apart)" in line


def test_seeds_with_other_settings_are_named(tmp_path):
    root = tmp_path / "results"
    for seed, steps in ((0, 100), (1, 100), (2, 7)):
        put(
            root,
            "toy",
            "medium",
            "meta_dt",
            "few_shot",
            "strict",
            seed,
            config={"steps": steps, "seed": seed, "device": str(seed)},
        )
    assert one_section(root).notes == ["the seeds of meta_dt differ in steps: 100 (seed 0), 7 (seed 2)"]


def test_scores_are_normalised_between_the_task_blind_and_the_best_known_level(tmp_path):
    root, reference = tmp_path / "results", {"task_blind": [1.0, 3.0], "best_known": [10.0, 14.0]}
    for seed, value in ((0, 6.0), (1, 8.0)):
        returns = [[value], [value]]
        put(root, "toy", "medium", "meta_dt+fast", "few_shot", "strict", seed, returns=returns, reference=reference)
        put(root, "toy", "medium", "meta_dt+fast-no_context", "few_shot", "strict", seed, reference=reference)
    put(root, "toy", "medium", "meta_dt+fast", "few_shot", "paper", 0, reference=reference)
    put(root, "more", "medium", "meta_dt+fast", "few_shot", "strict", 0, reference={"best_known": [1.0, 1.0]})
    rows = records(group_results(read_results(root)[0]))
    table, other = main_tables(rows).values()
    assert table.headers == ["method", "given", "toy\nmedium"]  # no ablation, no paper's protocol, no family without a scale
    assert other.title.startswith("With data of the test tasks") and other.rows[0][0] == "meta_dt+fast\nfew_shot, paper protocol"
    assert table.rows == [["meta_dt+fast", "—", "0.50\n[0.30, 0.70]"]]  # (7 - 2) / (12 - 2); from (6 - 3) / 10 on
    lines = list(csv.DictReader(csv_text(rows).splitlines()))
    found = {(line["env_type"], line["row"], line["protocol"]): line for line in lines}
    assert len(lines) == 4 and found["more", "meta_dt+fast", "strict"]["score"] == ""
    assert float(found["toy", "meta_dt+fast", "strict"]["score"]) == 0.5
    assert found["toy", "meta_dt+fast-no_context", "strict"]["ablation"] == "no_context"


def test_of_uneven_tasks_too_the_levels_themselves_score_0_and_1(tmp_path):
    """An interquartile mean, normalised by means, would say something else."""
    levels = {"task_blind": [1.0, 2.0, 3.0, 4.0, 90.0], "best_known": [2.0, 2.0, 7.0, 9.0, 130.0]}
    for name, values in levels.items():
        returns = [[value] for value in values]
        tasks = {"returns": returns, "task_ids": list(range(5)), "reference": levels}
        put(tmp_path / "results", "toy", "medium", name, "few_shot", "strict", 0, **tasks)
    rows = records(group_results(read_results(tmp_path / "results")[0]))
    assert {row["row"]: round(row["score"], 12) for row in rows} == {"task_blind": 0.0, "best_known": 1.0}


def write_contest(root, env_type="toy", quality="medium"):
    """Three methods of three seeds on two tasks whose task-blind level is 0 and whose best is 10."""
    reference = {"task_blind": [0.0, 0.0], "best_known": [10.0, 10.0]}
    for name, values in (("meta_dt+mine", (5, 6, 7)), ("peer", (8, 8.5, 9)), ("twin", (7.5, 8.5, 9)), ("alone", (9,))):
        for seed, value in enumerate(values):
            warmup = [[[0.0, 1.0]], [[0.0, 1.0]]]
            put(
                root, env_type, quality, name, "few_shot", "strict", seed, returns=[[value], [value]], reference=reference,
                warmup_returns=warmup, parameters=1_250_000, gradient_steps=4000, wall_clock_s=90,
                privileges="task parameters" if name == "alone" else "none",
            )  # fmt: skip
    return records(group_results(read_results(root)[0]))


def test_who_wins_by_how_much_and_how_sure(tmp_path):
    rows = write_contest(tmp_path / "results")
    cells = {row[0]: row[2].split("\n")[0] for row in main_tables(rows)["Few-shot"].rows}
    assert cells == {"meta_dt+mine": "0.60", "peer": "0.85 ★", "twin": "0.83 ≈", "alone": "0.90"}
    summary, (sentence,) = verdicts(rows, "Few-shot")
    assert summary == ["Few-shot, given nothing beyond the data, 1 data set: peer leads on 1 (not surely)."]
    assert sentence.startswith(
        "toy · medium, few-shot: given nothing beyond the data, peer with 0.85 [0.80, 0.90] leads, twin is"
    )
    assert "(not sure), meta_dt+mine is 0.25 behind [" in sentence and "(sure) at place 3 of 3" in sentence
    assert sentence.endswith("given the task parameters, alone with 0.90 (ranked apart).")


def test_meta_dt_against_each_method_and_what_rows_cost(tmp_path):
    rows = write_contest(tmp_path / "results")
    table = improvement_table(rows, "Few-shot")
    assert table.headers == ["this", "better than this", "given", "toy\nmedium"]
    assert table.rows == [
        ["meta_dt+mine", "peer", tables.NONE, "0.00\n[0.00, 0.00]"], ["meta_dt+mine", "twin", tables.NONE, "0.00\n[0.00, 0.00]"],
        ["meta_dt+mine", "alone", "none / task parameters", "0.00"],
    ]  # fmt: skip
    cost = "1.25 M, 4,000 updates\n1.5 min, 2 episodes"
    assert budget_table(rows, []).rows[0] == ["meta_dt+mine", cost]
    lines = list(csv.DictReader(csv_text(rows).splitlines()))
    assert {line["parameters"] for line in lines} == {"1250000.0"} and "scores" not in lines[0]


def test_a_run_that_failed_is_named_where_its_result_is_missing(tmp_path, capsys):
    root = tmp_path / "results"
    write_contest(root)
    faults = [
        {"env_type": "toy", "quality": "medium", "method": name, "recipe": "paper", "ablation": "none", "variant": {},
         "regime": "few_shot", "protocol": "strict", "validation": False, "fresh": False, "seed": seed,
         "reason": "error: out of patience"}
        for name, seed in (("lost", 0), ("peer", 1), ("peer", 3))
    ]  # fmt: skip
    path = tmp_path / "saves/toy/reproduce/failed.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(faults))
    report.main(["--results", str(root), "--table_only"])
    out, err = capsys.readouterr()
    assert re.search(r"\nlost +— +failed\n", out) and "peer" in out and out.count("failed") == 1
    assert [line for line in err.splitlines() if "failed" in line] == [  # peer's seed 1 was made since
        "note: lost on toy · medium, few_shot, seed 0: failed (error: out of patience)",
        "note: peer on toy · medium, few_shot, seed 3: failed (error: out of patience)",
    ]
    path.write_text('[{"env_type": "toy"}]')
    with pytest.raises(SystemExit):
        report.main(["--results", str(root), "--table_only"])
    assert "remove it" in capsys.readouterr().err


def test_recipes_that_no_settings_have_any_more_stand_in_the_csv_only(tmp_path, capsys):
    root = tmp_path / "results"
    for name in ("meta_dt+fast", "meta_dt+superseded"):
        put(root, "point_robot", "medium", name, "few_shot", "strict", 0, reference={"task_blind": [0, 0], "best_known": [9, 9]})
    report.main(["--results", str(root), "--output", str(tmp_path / "report")])
    assert "superseded" not in capsys.readouterr().out + (tmp_path / "report/index.html").read_text()
    assert "meta_dt+superseded" in (tmp_path / "report/results.csv").read_text()
    assert is_current({"env_type": "toy", "recipe": "superseded"})  # its settings lie elsewhere


def test_published_figures_say_how_they_are_known():
    table = published_table()
    assert len(table.rows) >= 20
    for *_, mark, source in table.rows:  # "told": where the figure was seen by others
        assert ("arXiv" in source) if mark.startswith("read") else (mark == "told" and "README" in source)
    assert not [row for row in table.rows if "T2DA" in row[5] and "told" not in row[4]]


def test_a_wide_table_goes_on_below():
    table = tables.Table("T", ["name", "a", "b", "c"], [["x", "11111111", "22222222", "33333333"]])
    lines = tables.text_table(table, width=24).split("\n")
    assert [line for line in lines if line.startswith("x")] == ["x     11111111  22222222", "x     33333333"]
    assert max(map(len, lines)) == 24
    table.rows.append(["y", "1", "2", tables.NONE])
    assert [line.split() for line in tables.text_table(table, width=24).split("\n") if line.startswith("y")] == [["y", "1", "2"]]
    narrow = tables.text_table(table, width=5).split("\n")
    assert [line for line in narrow if line.startswith("x")] == [f"x     {digit * 8}" for digit in "123"]


def test_a_training_that_two_regimes_come_from_is_drawn_once(tmp_path):
    root, curve = tmp_path / "results", {"gradient_steps": [0, 10], "test_return": [0.0, 1.0]}
    own = {"gradient_steps": [0, 10_000], "test_return": [0.0, 5.0]}
    for regime in ("few_shot", "zero_shot"):
        put(root, "toy", "medium", "peer", regime, "strict", 0, curve=curve)
        put(root, "toy", "medium", "meta_dt", regime, "strict", 0, curve=curve if regime == "few_shot" else own)
    drawn = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(figures, "draw_lines", lambda panels, styles: drawn.append(panels) or b"")
        section = one_section(root)
        list(pictures.curve_pictures(section, figures.method_styles(section.methods)))
    assert [(panel["title"], sorted(panel["lines"])) for panel in drawn[0]] == [
        ("few_shot: test tasks", ["meta_dt", "peer"]), ("zero_shot: test tasks", ["meta_dt"]),
    ]  # fmt: skip


def test_axes_stay_where_the_data_are():
    """A level far below, as the trivial one of Cheetah-Vel, is named at the edge and takes no room."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [-32.0, -30.0])
    figures._draw_references(axes, {"trivial": -200.0, "best_known": -29.0})
    low, high = axes.get_ylim()
    assert -33 < low < -32 and -30 < high < -28
    assert [text.get_text() for text in axes.texts] == ["trivial −200 ↓", "best known"]


def test_methods_on_other_tasks_have_a_column_of_their_own(tmp_path):
    root = tmp_path / "results"
    paths = {"trajectories": {"45": [[[0, 0], [1, 1]]]}, "belief": {"spread": [1.0], "low": [0.5], "high": [1.5]}}
    for seed in range(2):
        put(root, "toy", "online", "borel", "bamdp", "strict", seed, returns=[[1, 2], [3, 4]], **paths)
    more = {"task_ids": [0, 1, 2], "returns": [[5, 6]] * 3, "reference": {"best_known": [9.0] * 3}, **paths}
    put(root, "toy", "online", "borel+reduced", "bamdp", "strict", 0, **more)
    section = one_section(root)
    assert {column: list(methods) for column, methods in section.runs.items()} == {
        ("bamdp", "strict", 1): ["borel+reduced"],
        ("bamdp", "strict", 2): ["borel"],
    }
    assert tables.section_note(section) == "Test tasks (1) 0–2; (2) 45, 46. 3 runs."
    table = tables.score_table(section)
    assert table.headers[1:-1] == ["bamdp, strict protocol, tasks (1)", "bamdp, strict protocol, tasks (2)"]
    assert [row[1:-1] for row in table.references] == [["9.00\nmean 9.00", tables.NONE]]
    assert [row[2 if row[0] == "borel" else 1] for row in table.rows] == ["2.50 [1.50, 3.50]\nmean 2.50 [1.50, 3.50], 2 seeds",
                                                                           "5.50\nmean 5.50, 1 seed"]  # fmt: skip
    report.main(["--results", str(root), "--output", str(tmp_path / "report")])
    names = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert {"toy-online-belief-bamdp-strict-1.png", "toy-online-belief-bamdp-strict-2.png"} <= names


def test_no_results_says_what_to_do(tmp_path):
    root = tmp_path / "results"
    with pytest.raises(UserError, match="train a policy first"):
        read_results(root)
    put(root, "toy", "medium", "meta_dt", "few_shot", "strict", 0)
    with pytest.raises(UserError, match="other_env"):
        read_results(root, ["other_env"])


def test_the_committed_results_are_small_and_readable():
    results, faults = read_results(ROOT / "results")
    assert not faults and len(results) > 50
    assert sum(path.stat().st_size for path in (ROOT / "results").rglob("*") if path.is_file()) < 5e6
    assert max(len(result["path"].read_text().splitlines()) for result in results) < 120


# ------------------------------------------------------------------------------------------------------------ output


def test_the_table_is_printed_and_nothing_written(tree, capsys, monkeypatch):
    monkeypatch.chdir(tree.parent)
    before = sorted(tree.parent.iterdir())
    report.main(["--env_type", "point_robot", "cheetah_vel", "--table_only"])
    text = capsys.readouterr().out
    few_shot, _ = text.split("Zero-shot: ")
    assert few_shot.index("meta_dt+fast") < few_shot.index("prompt_dt") and "meta_dt-no_context" not in text
    assert re.search(r"\nmeta_dt\+fast +— +0\.\d\d ★\n +\[0\.\d\d, 0\.\d\d\]\n", few_shot)
    assert not any(title in text for title in ("Details", "Budget", "Published", "gridworld"))
    assert sorted(tree.parent.iterdir()) == before


def test_text_table_is_aligned():
    table = tables.Table("Title", ["a", "b"], [["x", "1\nlow"], ["long", "22"]], [["ref", "3"]])
    lines = [
        "Title",
        "────  ───",
        "a     b",
        "────  ───",
        "x     1",
        "      low",
        "long  22",
        "────  ───",
        "ref   3",
        "────  ───",
    ]
    assert tables.text_table(table).split("\n") == lines


def test_every_picture_is_a_png_and_stands_in_the_page(made):
    names = {path.name for path in made.glob("*.png")}
    assert names == {
        "cheetah_vel-medium-context.png",
        "gridworld-mixed-adaptation.png",
        "point_robot-medium-profiles.png",
        "gridworld-mixed-paths-borel-bamdp-strict.png",
        "point_robot-medium-adaptation.png",
        "point_robot-medium-context.png",
        "point_robot-medium-curves.png",
        "point_robot-medium-paths-meta_dt+fast-few_shot-strict.png",
        "point_robot-medium-paths-meta_dt-few_shot-strict.png",
        "point_robot-medium-paths-prompt_dt-few_shot-strict.png",
    }
    page = (made / "index.html").read_text()
    assert page.index("Few-shot: ") < page.index("Zero-shot: ") < page.index("Family by family") < page.index("<figure>")
    assert re.search(r'<details id="point_robot-medium">(?s:.)*<details><summary>Paths</summary><figure>', page)
    for name in names:
        data = (made / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 500
        assert height > 300
        assert base64.b64encode(data).decode() in page


def test_the_page_is_self_contained_and_complete(made):
    page = (made / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) <= {"data:", "#lege", "resul"}
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    for text in ("gym_hopper · medium", "finetuned, strict protocol", "few_shot, paper protocol", "Some CPU, 2 cores"):
        assert text in page
    assert "python train.py --env_type gridworld --seed 0" in page
    for term in report.LEGEND:
        assert f"<dt>{term}</dt>" in page


def test_markdown_holds_every_table(made):
    text = (made / "tables.md").read_text()
    assert text.count("### Return on the test tasks") == 4
    assert "| *task_blind* | -16.43<br>mean -16.48 |" in text
    assert "| bayes_optimal |" not in text
    assert "| *bayes_optimal* | 8.00<br>mean 8.00 |" in text
    assert "`python train.py --env_type point_robot --seed 0`" in text


def test_the_same_files_give_the_same_report(tmp_path, capsys):
    root = tmp_path / "results"
    for seed in range(2):
        put(root, "toy", "medium", "meta_dt", "few_shot", "strict", seed, returns=[[seed], [2.0 * seed]])
        write_diagnostics(root, "toy", "context", [[0.0, 1.0], [1.0, 0.5]], seed)
    for name in ("first", "second"):
        report.main(["--results", str(root), "--output", str(tmp_path / name)])
        assert capsys.readouterr().out.endswith(f"{tmp_path / name / 'index.html'}\n")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
