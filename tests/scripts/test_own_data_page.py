"""The page "Bring your own data", followed from start to end as printed."""

import importlib
import re
import shlex

import pytest
from helpers import ROOT, same_arrays

from src.data.trajectories import load

PAGE = ROOT / "docs/own_data.md"
BLOCK = re.compile(r"```(python|shell|text)\n(.*?)```", re.DOTALL)


def run(line, capsys):
    """What a command of the page prints, its error included."""
    words = shlex.split(line)
    assert words[0] == "python"
    name, argv = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
    capsys.readouterr()
    try:
        importlib.import_module(name).main(argv)
    except SystemExit as stop:
        assert stop.code == 2, line
        return capsys.readouterr().err
    return capsys.readouterr().out


def test_the_page_from_start_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip("minari")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # what the page sets is undone
    names, told, commands = {}, "", 0
    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "python":
            exec(text, names)
        elif kind == "shell":
            for line in text.splitlines():
                told, commands = run(line, capsys), commands + 1
                assert told.startswith("error: ") == ("--data_type bad" in line), told
        else:
            assert text.strip() in told
    assert commands == 9 and not (tmp_path / "datasets/point_robot/bad-v0").exists()
    datasets = [load("datasets", "point_robot", name) for name in ("mine", "mine_npz", "mine_minari")]
    assert len(datasets[0]) == 120 and all(same_arrays(datasets[0], other) for other in datasets[1:])
    assert (tmp_path / "task_47.png").stat().st_size and (tmp_path / "report/index.html").stat().st_size
    assert list(tmp_path.glob("results/point_robot/mine/meta_dt+debug/few_shot-strict/seed_0.json"))
