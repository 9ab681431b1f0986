"""The README's tables are what the committed results say; the tool that writes them keeps the rest of the text."""

import json

import pytest
from helpers import ROOT, shell

from src.run.errors import UserError
from tools import readme


def write(folder, env_type, quality, regime, seed, returns, method="meta_dt+fast", **more):
    path = folder / env_type / quality / method / f"{regime}-strict" / f"seed_{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "env_type": env_type, "quality": quality, "method": method, "regime": regime, "protocol": "strict", "seed": seed,
        "task_ids": [8, 9], "returns": returns, "command": "python x.py",
        "reference": {"trivial": [0, 0], "task_blind": [1, 3], "dataset_mean": [2, 3], "oracle": [10, 14]}, **more,
    }  # fmt: skip
    path.write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path):
    write(
        tmp_path / "results",
        "slide",
        "medium",
        "few_shot",
        0,
        [[6, 8], [7, 7]],
        warmup_returns=[[[2, 4], [2, 4]], [[4, 4], [4, 4]]],
    )
    write(tmp_path / "results", "slide", "medium", "zero_shot", 0, [[4, 4], [5, 5]])
    write(tmp_path / "results", "slide", "medium", "zero_shot", 0, [[3, 3], [2, 2]], method="meta_dt+fast-no_context")
    write(tmp_path / "results", "slope", "replay", "few_shot", 0, [[6, 8], [7, 7]])
    write(tmp_path / "results", "slope", "replay", "few_shot", 1, [[8, 8], [8, 8]])
    text = (
        "before\n<!-- table: slide -->\nold\n<!-- end of table -->\nbetween\n<!-- table: slide slope -->\n<!-- end of table -->\n"
    )
    (tmp_path / "README.md").write_text(text)
    return tmp_path


def test_tables_are_written_between_their_marks(folder, capsys):
    flags = ["--pages", str(folder / "README.md"), "--results", str(folder / "results")]
    with pytest.raises(SystemExit):
        readme.main([*flags, "--check", "True"])
    assert "give the same command without --check" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        readme.main(["--pages", str(folder / "nothing.md")])
    assert "there is no such file" in capsys.readouterr().err
    readme.main(flags)
    lines = (folder / "README.md").read_text().splitlines()
    assert lines[0] == "before" and "between" in lines and "old" not in lines
    assert "| trivial | 0.00 |" in lines and "| oracle | 12.00 |" in lines
    assert (
        "| meta_dt+fast, few shot | 7.00, 1 seed, IQM 7.00 |" in lines
        and "| meta_dt+fast, zero shot | 4.50, 1 seed, IQM 4.50 |" in lines
    )
    assert "| meta_dt+fast, few shot: by episode | 3.0, 4.0, 7.0 |" in lines
    # (7 - 2) / (12 - 2) of the gain; the second family has two seeds, means 7 and 8, and no zero-shot result
    assert "| slide, medium | 0.0 | 2.0 | 2.5 | 2.5, 1 seed | 4.5, 1 seed | 7.0, 1 seed | 12.0 | 50% |" in lines
    assert any(
        line.startswith("| slope, replay | 0.0 | 2.0 | 2.5 | – | – | 7.5 [") and line.endswith("| 12.0 | 55% |") for line in lines
    )
    readme.main([*flags, "--check", "True"])


def test_episodes_played_in_sequence_have_columns_of_their_own(tmp_path):
    for seed, returns in ((0, [[1, 4], [3, 4]]), (1, [[2, 5], [4, 5]])):
        references = {"oracle": [[6, 6], [8, 8]], "trivial": [[0, 0], [0, 0]]}
        levels = {level: [6.0, 8.0] if level == "oracle" else [0.0, 0.0] for level in references}
        write(tmp_path, "maze", "log", "bamdp", seed, returns, reference=levels, reference_episodes=references)
    lines = readme.table(tmp_path, ["maze"]).splitlines()
    assert lines[0] == "|  | episode 1 | episode 2 | sum |" and "| trivial | 0.0 | 0.0 | 0.0 |" in lines
    assert "| oracle | 7.0 | 7.0 | 14.0 |" in lines
    assert lines[-1].startswith("| meta_dt+fast | 2.5 | 4.5 | 7.0 [") and lines[-1].endswith("], 2 seeds |")
    write(tmp_path, "maze", "online", "bamdp", 0, [[6, 6], [8, 8]], method="online", reference_episodes=references)
    assert readme.table(tmp_path, ["maze"]).splitlines()[-2:] == [lines[-1], "| online | 7.0 | 7.0 | 14.0, 1 seed |"]
    assert readme.table(tmp_path, ["maze/log"]).splitlines() == lines
    with pytest.raises(UserError, match="no such results"):
        readme.table(tmp_path, ["maze/replay"])
    for name in ("maze/log", "maze+fast"):
        with pytest.raises(UserError, match="of one family only"):
            readme.table(tmp_path, [name, "maze"])
    write(tmp_path, "maze", "online", "bamdp", 0, [[6, 6]], method="small", task_ids=[8], reference={}, reference_episodes={})
    with pytest.raises(UserError, match="the methods of maze/online were scored on different tasks"):
        readme.table(tmp_path, ["maze"])
    assert readme.table(tmp_path, ["maze/log"]).splitlines() == lines
    (tmp_path / "maze/online/small/bamdp-strict/seed_0.json").unlink()
    write(tmp_path, "maze", "replay", "bamdp", 0, [[6, 6], [8, 8]], reference_episodes=references)  # a name that "log" has too
    with pytest.raises(UserError, match="show maze/<kind of data>"):
        readme.table(tmp_path, ["maze"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: slide -->\nkept\n<!-- table: slope -->\n<!-- end of table -->\n", "mend its marks"),
        ("<!-- table: slide -->\nkept\n", "mend its marks"),
        ("no table", "mend its marks"),
        ("<!-- table:  -->\n<!-- end of table -->\n", "a table has no name"),
        ("<!-- table: slide+ -->\n<!-- end of table -->\n", "a name is FAMILY, FAMILY/DATA"),
        ("<!-- table: slide+fast/medium -->\n<!-- end of table -->\n", "a name is FAMILY, FAMILY/DATA"),
        ("<!-- table: slide+fats -->\n<!-- end of table -->\n", "no results of recipe fats"),
        ("<!-- table: pyproject.json -->\n<!-- end of table -->\n", "no result file of a benchmark"),
        (b"\xff\xfe", "not text in UTF-8"),
    ],
)
def test_broken_marks_are_refused_and_nothing_is_lost(folder, capsys, text, message):
    page = folder / "page.md"
    page.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = page.read_bytes()
    with pytest.raises(SystemExit):
        readme.main(["--pages", str(page), "--results", str(folder / "results")])
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and page.read_bytes() == before


def test_a_table_of_one_recipe_stands_beside_the_paper_s(folder):
    for method in ("meta_dt", "meta_dt+slow", "meta_dt+fast-no_prompt"):
        write(folder / "results", "slide", "medium", "few_shot", 1, [[6, 8], [7, 7]], method=method)
    names = {
        line.split(" |")[0].removeprefix("| ").split(",")[0]
        for line in readme.table(folder / "results", ["slide+fast"]).splitlines()
    }
    assert {"meta_dt", "meta_dt+fast", "meta_dt+fast-no_prompt"} < names and "meta_dt+slow" not in names
    assert "meta_dt+slow" in readme.table(folder / "results", ["slide"])
    assert readme.table(folder / "results", ["slide/medium+fast"]) == readme.table(folder / "results", ["slide+fast"])
    with pytest.raises(UserError, match="no such results"):
        readme.table(folder / "results", ["slope/medium+fast"])


def test_scores_are_normalised_where_the_runs_say_how(tmp_path):
    scale = {"minimum": 2.0, "maximum": 12.0, "source": "the data"}
    write(tmp_path, "robot", "medium", "pretrained", 0, [[6, 8], [7, 7]], normalisation=scale)
    assert "| meta_dt+fast, pretrained | 7.00, 1 seed, normalised 50.0 |" in readme.table(tmp_path, ["robot"]).splitlines()


def test_the_readme_shows_the_committed_results():
    done = shell("-m tools.readme", "--check", "True")
    assert done.returncode == 0, done.stderr
    assert "<!-- table: point_robot+fast -->" in (ROOT / "README.md").read_text()
