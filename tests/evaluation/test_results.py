"""The result files' writer and reader: what is written comes back, what breaks the schema is refused in one line."""

import json
import tracemalloc

import numpy as np
import pytest

from src.evaluation.results import label, read_pictures, read_result, write_result
from src.run.errors import UserError
from src.run.files import read_json, write_json

FACTS = {
    "method": "meta_dt", "recipe": "fast", "ablation": "none", "regime": "few_shot", "protocol": "strict", "seed": 3,
    "privileges": "reward function", "task_ids": [45, 46], "training": {"gradient_steps": 100, "parameters": 7},
    "made_from": {"dataset_sha256": "ab12"}, "config": {f"setting_{n}": n for n in range(60)},
}  # fmt: skip
MEASURED = {
    "returns": np.array([[0.1 + 0.2, 1.0], [-2.0, 1e-6]]),
    "warmup_returns": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]],
    "trajectories": {"45": {"warmup": [], "evaluation": [[[0.0, 0.5]]]}},
}


def write(root, **changes):
    return write_result(root, "toy", "medium", **{"measured": MEASURED, **FACTS, **changes})


def test_what_is_written_comes_back(tmp_path):
    path = write(
        tmp_path, target_return=np.float32(5.5), reference={"best_known": [3.0, 4.0], "expert": None}, target_rule="train",
        task_parameters={"45": {"goal": [0.25, 1 / 3]}, "7": {"goal": [0, 0]}}, directory=tmp_path / "saves" / "run",
        curve={"gradient_steps": [50, 100], "test_return": [1.0, None]},
    )  # fmt: skip
    assert path == tmp_path / "results/toy/medium/meta_dt+fast/few_shot-strict/seed_3.json"
    result = read_result(path)
    assert result["task_ids"] == [45, 46] and result["returns"] == MEASURED["returns"].tolist()
    assert result["warmup_returns"] == MEASURED["warmup_returns"] and result["task_parameters"] == {"45": {"goal": [0.25, 1 / 3]}}
    assert result["reference"] == {"best_known": [3.0, 4.0]} and result["reference_episodes"] == {}
    assert result["target_return"] == 5.5 and result["target_rule"] == "train" and result["validation"] is False
    assert result["curve"]["test_return"] == [1.0, None] and result["config"] == FACTS["config"]
    for key in ("method", "recipe", "ablation", "regime", "protocol", "seed", "privileges", "training", "made_from"):
        assert result[key] == FACTS[key]
    assert read_pictures(tmp_path, result) == {"trajectories": MEASURED["trajectories"]}
    (tmp_path / result["pictures"]).unlink()
    assert read_pictures(tmp_path, result) == {}


def test_no_digit_of_a_return_is_lost(tmp_path):
    tiny = [[1e-6, 3.3e-9], [1 / 3 * 1e-7, -1e-12]]
    assert read_result(write(tmp_path, measured={"returns": tiny}))["returns"] == tiny


def test_episodes_that_are_alike_are_written_once(tmp_path):
    measured = {"returns": [[1.5] * 30, [2.0, 2.5] * 15], "warmup_returns": [[[0.25, 0.5]] * 30] * 2, "success": [[1.0] * 30] * 2}
    path = write(tmp_path, measured=measured)
    result = read_result(path)
    assert {key: result[key] for key in measured} == measured
    first, second = read_json(path)["tasks"]
    assert first["returns"] == {"each": 1.5, "times": 30} and second["returns"] == measured["returns"][1]
    assert first["warmup_returns"] == second["warmup_returns"] == {"each": [0.25, 0.5], "times": 30}


@pytest.mark.parametrize("times", [10**15, 0, -1, True, 1.0, "2", None, [2]])
def test_how_often_is_a_number_of_episodes(tmp_path, times):
    path = write(tmp_path, measured={"returns": [[1.0, 1.0], [2.0, 3.0]], "success": [[1.0, 1.0], [0.0, 1.0]]})
    document = read_json(path)
    document["tasks"][0]["returns"]["times"] = times
    write_json(path, document)
    with pytest.raises(UserError, match=r"key 'tasks.(returns|success)' must be"):
        read_result(path)


def test_what_is_alike_must_not_fill_the_memory(tmp_path):
    """A small file that says of many numbers that they are those of very many episodes."""
    path = write(tmp_path, measured={"returns": [[1.0, 1.0], [2.0, 2.0]], "warmup_returns": [[[1.0]] * 2] * 2})
    document = read_json(path)
    for row in document["tasks"]:
        row["returns"]["times"] = row["warmup_returns"]["times"] = 40_000
        row["warmup_returns"]["each"] = [1.0] * 20_000
    write_json(path, document)
    began = tracemalloc.start() or tracemalloc.get_traced_memory()[0]
    with pytest.raises(UserError, match=r"key 'tasks.(warmup_)?returns' must be"):
        read_result(path)
    assert tracemalloc.get_traced_memory()[1] - began < 50 << 20
    tracemalloc.stop()


def test_an_altered_digit_is_refused(tmp_path):
    path = write(tmp_path, measured={"returns": [[1.0], [123.0]]})
    path.write_text(path.read_text().replace("123.0", "723.0"))
    with pytest.raises(UserError, match="is damaged"):
        read_result(path)


def test_one_line_per_task_and_few_for_the_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_meta_dt.py"])  # the command stands in the file, too
    text = write(tmp_path, task_parameters={45: {"goal": [1, 2]}}).read_text()
    lines = text.splitlines()
    assert [line.strip().startswith('{"task": ') for line in lines].count(True) == 2
    assert "trajectories" not in text and len(lines) < 40 and json.loads(text)["schema"] == 1
    assert max(map(len, lines)) <= 400 and text.endswith("}\n")


def test_levels_by_episode_are_also_levels(tmp_path):
    measured = {"returns": [[1.0, 5.0], [3.0, 7.0]], "success": [[0, 1], [1, 1]]}
    result = read_result(
        write(tmp_path, regime="bamdp", measured=measured, reference={"best_known": [[1, 3], [5, 5]], "blind": [0, 1]})
    )
    assert result["reference"] == {"best_known": [2.0, 5.0], "blind": [0.0, 1.0]}
    assert result["reference_episodes"] == {"best_known": [[1, 3], [5, 5]]} and result["success"] == [[0, 1], [1, 1]]


def test_facts_that_differ_never_share_a_file(tmp_path):
    changes = (
        {}, {"recipe": "paper"}, {"ablation": "no_context"}, {"regime": "zero_shot"}, {"protocol": "paper"}, {"seed": 4},
        {"validation": True}, {"fresh": True}, {"variant": {"explore_steps": 3}},
        {"variant": {"folder": "a/b"}}, {"variant": {"folder": "a_b"}},
    )  # fmt: skip
    paths = {write(tmp_path, **change) for change in changes}
    assert len(paths) == len(changes)
    assert {read_result(path)["variant"].get("folder") for path in paths} == {None, "a/b", "a_b"}


def test_a_row_is_named_by_its_facts():
    facts = {"method": "meta_dt", "recipe": "fast", "ablation": "no_context", "variant": {"explore_steps": 3}}
    assert label(facts) == "meta_dt+fast-no_context-explore_steps_3"
    assert label({**facts, "recipe": "paper", "ablation": "none", "variant": {}}) == "meta_dt"


def test_a_world_model_has_no_tasks(tmp_path):
    measured = {"embedding": {"points": [[0.0, 1.0]]}}
    probe = {"dataset": {"r2": 0.97}}
    path = write(
        tmp_path, method="context", regime="diagnostics", protocol=None, task_ids=[], measured=measured, probe=probe,
        errors={"reward_rmse": 0.1}, directory=tmp_path / "saves",
    )  # fmt: skip
    assert path.parent.name == "diagnostics"
    result = read_result(path)
    assert result["probe"] == probe and result["task_ids"] == [] and read_pictures(tmp_path, result) == measured
    path.write_text(json.dumps({key: value for key, value in read_json(path).items() if key != "protocol"}))
    with pytest.raises(UserError, match="key 'protocol' is missing"):
        read_result(path)


@pytest.mark.parametrize(
    "change",
    [{"measured": {"returns": [[1.0]]}}, {"measured": {"return": [1, 2]}}],
)
def test_what_does_not_fit_the_tasks_is_never_written(tmp_path, change):
    with pytest.raises(ValueError):
        write(tmp_path, **change)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measured": {"returns": [[1.0], [float("nan")]]}}, "a number that is infinite or none"),
        ({"measured": {"returns": [[1.0], [1e16]]}}, "'tasks.returns' of the result of meta_dt.fast must be"),
        ({"reference": {"best_known": [1.0, 1e16]}}, "'tasks.reference.best_known' .*scale rewards"),
        ({"reference": {"bset/known": [1.0, 2.0]}}, "'tasks.reference.bset/known' of"),
        ({"measured": MEASURED | {"trajectories": [float("inf")]}}, "a number that is infinite or none"),
        ({"measured": MEASURED, "curve": {"gradient_steps": [1], "loss": [1e20]}}, "'curve.loss' of"),
    ],
)
def test_what_its_reader_would_refuse_is_never_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        write(tmp_path, directory=tmp_path / "saves", **change)
    assert not list(tmp_path.rglob("*.json")) and "\n" not in str(caught.value)


def with_row(**change):
    return lambda document: document["tasks"][1].update(change)


BROKEN = {
    "schema": lambda d: d.update(schema=2),
    "method": lambda d: d.update(method="x" * 5000),
    "regime": lambda d: d.update(regime="\x1b[31m"),
    "protocol": lambda d: d.update(protocol=None),
    "seed": lambda d: d.update(seed=True),
    "privileges": lambda d: d.update(privileges="all"),
    "validation": lambda d: d.update(validation=0),
    "fresh": lambda d: d.update(fresh=True, validation=True),
    "training.gradient_steps": lambda d: d["training"].update(gradient_steps="many"),
    "curve.test_return": lambda d: d.update(curve={"gradient_steps": [1, 2], "test_return": [1.0]}),
    "tasks": lambda d: d.update(tasks=[]),
    "tasks.task": with_row(task=45),
    "tasks.returns": with_row(returns=[]),
    "tasks.success": with_row(success=[1.0, 0.0]),
    "tasks.warmup_returns": with_row(warmup_returns=[[1.0], [2.0]]),
    "tasks.reference.best_known": with_row(reference={"best_known": 1.0}),
    "normalisation": lambda d: d.update(normalisation={"minimum": 1.0, "maximum": 1.0}),
    "pictures": lambda d: d.update(pictures="../../secret.json"),
    "probe.dataset": lambda d: d.update(probe={"dataset": [1.0]}),
}


EMPTY = {  # lists that are empty for some tasks or episodes only
    "tasks.warmup_returns": with_row(warmup_returns=[[], []]),
    "tasks.later_returns": lambda d: d["tasks"][0].update(later_returns=[[1.0], []]),
    "tasks.reference.levels": lambda d: [row.update(reference={"levels": [1.0] * place}) for place, row in enumerate(d["tasks"])],
}


@pytest.mark.parametrize(("key", "change"), [*BROKEN.items(), *EMPTY.items()])
def test_a_broken_key_is_named(tmp_path, key, change):
    path = write(tmp_path)
    document = read_json(path)
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError) as caught:
        read_result(path)
    assert str(caught.value).startswith(f"{path}: key '{key}' must be ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 200_000, "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"), '{"schema": 1e999}']
)
def test_what_is_no_result_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "seed_0.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_result(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), "2", None, True])
def test_a_return_is_a_finite_number(tmp_path, value):
    path = write(tmp_path, measured={"returns": [[1.0], [123.0]]})
    path.write_text(json.dumps(read_json(path)).replace("123.0", json.dumps(value)))
    with pytest.raises(UserError, match=r"key 'tasks\.returns' must be|is not a finite number"):
        read_result(path)
