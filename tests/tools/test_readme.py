"""The tables of README and docs are what the committed results say; their commands and links are right."""

import importlib
import json
import re
import shlex

import numpy as np
import pytest
from helpers import ROOT, shell

from src.evaluation.results import write_result
from src.report.statistics import decimals
from src.run.errors import UserError
from src.run.files import read_json
from tools import file_tables, readme

PAGES = [page for pattern in readme.PAGES for page in sorted(ROOT.glob(pattern))]
REFERENCE = {"trivial": [0, 0], "task_blind": [1, 3], "dataset_mean": [2, 3], "best_known": [10, 14]}


def write(
    folder, env_type, quality, regime, seed, returns, recipe="fast", ablation="none", method="meta_dt", commit="0123456789",
    task_ids=(8, 9), reference=None, warmup_returns=None, success=None, protocol="strict", **more,
):  # fmt: skip
    path = write_result(
        folder.parent, env_type, quality, method=method, recipe=recipe, ablation=ablation, regime=regime, protocol=protocol,
        privileges="none", seed=seed, task_ids=list(task_ids), training={}, made_from={}, config={},
        measured={"returns": returns, "warmup_returns": warmup_returns} | ({"success": success} if success else {}),
        reference=REFERENCE if reference is None else reference, **more,
    )  # fmt: skip
    path.write_text(json.dumps({**read_json(path), "commit": commit}))
    return path


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
    write(tmp_path / "results", "slide", "medium", "zero_shot", 0, [[3, 3], [2, 2]], ablation="no_context")
    write(tmp_path / "results", "slope", "replay", "few_shot", 0, [[6, 8], [7, 7]])
    write(tmp_path / "results", "slope", "replay", "few_shot", 1, [[8, 8], [8, 8]])
    write(tmp_path / "results", "slope", "replay", "zero_shot", 0, [[3, 3], [4, 4]])
    write(tmp_path / "results", "slope", "replay", "few_shot", 0, [[20, 20], [20, 20]], recipe="other")  # not in the overview
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
    assert "| trivial | 0.00 |" in lines and "| best_known | 12.00 |" in lines
    assert (
        "| meta_dt+fast, few-shot | 7.00, 1 seed, IQM 7.00 |" in lines
        and "| meta_dt+fast, zero-shot | 4.50, 1 seed, IQM 4.50 |" in lines
    )
    assert "| meta_dt+fast, few-shot: by episode | 3.0, 4.0, 7.0 |" in lines
    # (7 - 2) / (12 - 2) of the gain; the second family has two seeds, means 7 and 8
    assert "| slide, medium | 2.0 | 2.5 | 2.5, 1 seed | 4.5, 1 seed | 7.0, 1 seed | 12.0 | 50% |" in lines
    assert any(
        line.startswith("| slope, replay | 2.0 | 2.5 | – | 3.5, 1 seed | 7.5 [") and line.endswith("| 12.0 | 55% |")
        for line in lines
    )
    readme.main([*flags, "--check", "True"])


def test_rows_of_a_checkout_with_uncommitted_changes_are_marked(folder):
    clean = readme.table(folder / "results", ["slope"])
    assert "†" not in clean
    write(folder / "results", "slope", "replay", "few_shot", 1, [[8, 8], [8, 8]], commit="0123456789-dirty")
    lines = readme.table(folder / "results", ["slope"]).splitlines()
    marked = [line for line in lines if line.endswith(" † |")]
    assert len(marked) == 1 and marked[0].startswith("| meta_dt+fast, few-shot |") and lines[-1].startswith("† The checkout")
    overview = readme.table(folder / "results", ["slide", "slope"])
    assert overview.count(" † |") == 1 and "-dirty" in overview


def test_runs_that_try_a_script_out_change_no_table(folder):
    results = folder / "results"
    names = ["slide"], ["slide", "slope"], ["contexts", "slide"], ["overview"]
    before = [readme.table(results, name) for name in names]
    write(results, "slide", "medium", "few_shot", 0, [[-9, -9], [-9, -9]], recipe="debug")
    write(results, "slide", "random", "few_shot", 0, [[-9, -9], [-9, -9]], recipe="debug", method="iql")
    assert [readme.table(results, name) for name in names] == before


def test_what_each_part_of_the_recipe_is_worth(folder):
    with pytest.raises(UserError, match="no ablations of fast"):
        readme.table(folder / "results", ["ablations", "slide", "slope"])
    write(folder / "results", "slope", "replay", "few_shot", 0, [[1, 1], [2, 2]], ablation="no_context")
    write(folder / "results", "slope", "replay", "zero_shot", 0, [[3, 3], [5, 5]], ablation="no_context")
    head, _, whole, without = readme.table(folder / "results", ["ablations", "slide", "slope"]).splitlines()
    assert head == "| family, data | changed | zero-shot | few-shot | few-shot of `fast` − this |"
    assert whole.startswith("| slope, replay | nothing | 3.5, 1 seed | 7.5 [") and whole.endswith(", 2 seeds | – |")
    assert without == "| slope, replay | no_context | 4.0, 1 seed | 1.5, 1 seed | 5.5 |"  # of that seed alone
    write(folder / "results", "slope", "replay", "few_shot", 1, [[1, 1], [2, 2]], ablation="no_context")
    line = readme.table(folder / "results", ["ablations", "slope"]).splitlines()[-1]
    assert line.split(" | ")[-1].startswith("6.0 [")
    write(folder / "results", "slope", "replay", "few_shot", 2, [[40, 40], [40, 40]], ablation="no_context")
    line = readme.table(folder / "results", ["ablations", "slope"]).splitlines()[-1]
    assert line.split(" | ")[-1].startswith("6.0 [")  # a seed that the recipe has not is not compared


def test_what_each_part_of_another_recipe_is_worth(folder):
    results = folder / "results"
    for ablation, returns in (("none", [[1, 3], [4, 4]]), ("no_prompt", [[2, 2], [5, 5]])):
        write(results, "slope", "replay", "few_shot", 0, returns, recipe="compare", ablation=ablation)
    write(results, "slope", "replay", "few_shot", 0, [[9, 9], [9, 9]], ablation="no_prompt")  # of fast
    head, _, *rows = readme.table(results, ["ablations+compare", "slope"]).splitlines()
    assert head.endswith("| few-shot of `compare` − this |")
    assert rows == ["| slope, replay | nothing | – | 3.0, 1 seed | – |", "| slope, replay | no_prompt | – | 3.5, 1 seed | -0.5 |"]


def test_own_and_recorded_contexts_stand_side_by_side(folder):
    results, curve = folder / "results", {"gradient_steps": [1, 2], "train_return": [9.0, 8.5]}
    write(results, "slope", "replay", "few_shot", 0, [[1, 3], [4, 4]], method="focal", recipe="compare", curve=curve)
    shown = {"method": "focal", "recipe": "compare", "protocol": "recorded_context"}
    write(results, "slope", "replay", "few_shot", 0, [[6, 6], [7, 7]], **shown)
    lines = readme.table(results, ["contexts", "slope"]).splitlines()
    assert lines[-1] == "| slope, replay | focal+compare | 3.0 | 6.5 | 8.5 |"
    with pytest.raises(UserError, match="no few-shot results"):
        write(results, "steep", "replay", "zero_shot", 0, [[1, 3], [4, 4]])
        readme.table(results, ["contexts", "steep"])


def test_methods_stand_beside_each_other_with_paper_and_script(folder):
    results, focal = folder / "results", {"method": "focal", "recipe": "compare"}
    for seed in (0, 1):
        write(results, "slide", "medium", "few_shot", seed, [[3, 3], [4, 4]], **focal)
    write(results, "slide", "medium", "few_shot", 0, [[9, 9], [9, 9]], fresh=True, **focal)  # on other tasks
    write(results, "slide", "medium", "few_shot", 0, [[9, 9], [9, 9]], ablation="no_relabelling", **focal)
    write(results, "slide", "medium", "few_shot", 0, [[9, 9], [9, 9]], method="mine")  # of no paper here
    write(results, "slide", "medium", "few_shot", 0, [[9, 9], [9, 9]], method="focal", recipe="compare_long")  # another budget
    write(results, "slide", "replay", "few_shot", 0, [[9, 9], [9, 9]], **focal)  # alone there
    head, _, best, blind, ours, theirs = readme.table(results, ["methods", "slide"]).splitlines()
    assert head == "| method | script | slide, medium |"
    assert best == "| *best known* |  | 12.0 |" and blind == "| *task-blind* |  | 2.0 |"
    assert ours == "| Meta-DT (Wang et al., 2024) | `train_meta_dt.py`, `fast` | 7.0 ★, 1 seed |"
    assert theirs == "| FOCAL (Li et al., 2021) | `baselines.focal` | 3.5, 2 seeds |"
    with pytest.raises(UserError, match="no data set has results of two methods"):
        readme.table(results, ["methods", "arm"])


def tiny_tree(root, scale):
    """Results of every kind of table, in rewards of that scale."""
    folder, levels = root / "results", {name: [value * scale for value in values] for name, values in REFERENCE.items()}

    def put(method, recipe, regime, returns, **more):
        returns, warmup_returns = ((np.array(values) * scale).tolist() for values in (returns, [[[2, 4]] * 2] * 2))
        more |= {"warmup_returns": warmup_returns} if regime == "few_shot" else {}
        write(folder, "dust", "log", regime, 0, returns, method=method, recipe=recipe, reference=levels, **more)

    put("meta_dt", "fast", "few_shot", [[6, 8], [7, 7]], curve={"gradient_steps": [1], "train_return": [9 * scale]})
    put("meta_dt", "fast", "few_shot", [[3, 3], [4, 4]], ablation="no_context")
    for method in ("focal", "idaq"):
        put(method, "compare", "few_shot", [[4, 3], [3, 3]])
        put(method, "compare", "zero_shot", [[3, 2], [2, 2]])
    costs = {"task_blind": [-8 * scale] * 2, "dataset_mean": [-3 * scale] * 2, "best_known": [-scale] * 2}
    for method, recipe in (("meta_dt", "fast"), ("idaq", "compare")):
        returns = [[-5 * scale] * 2] * 2
        write(folder, "sand", "log", "few_shot", 0, returns, method=method, recipe=recipe, reference=costs)
    played = {"best_known": [[6 * scale] * 2] * 2}
    write(folder, "grains", "log", "bamdp", 0, [[scale, 4 * scale]] * 2, reference=played)
    return folder


@pytest.mark.parametrize(
    "name", ["dust", "dust sand", "ablations dust", "contexts dust", "methods dust", "idaq dust", "idaq sand", "grains"]
)
def test_tiny_returns_keep_two_digits(tmp_path, name):
    """Rewards of 1e-6 make the same tables a million times smaller, and not zeros."""
    tables = [readme.table(tiny_tree(tmp_path / str(scale), scale), name.split()) for scale in (1, 1e-6)]
    plain, tiny = ([float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", table)] for table in tables)
    scaled = [index for index in range(len(plain)) if plain[index] != tiny[index]]
    assert len(plain) == len(tiny) and (scaled or name == "idaq dust")  # which shows shares
    np.testing.assert_allclose([1e6 * tiny[index] for index in scaled], [plain[index] for index in scaled], atol=0.55)
    assert all(tiny[index] for index in scaled)


def test_decimals():
    for largest, expected in ((0, 2), (0.1, 2), (12, 2), (0.09, 3), (0.011, 3), (-0.0099, 4), (1e-6, 7), (1e-9, 10)):
        assert decimals([0, largest], 2) == expected
    assert f"{1.26e-6:.{decimals([1.26e-6], 1)}f}" == "0.0000013" and decimals([], 1) == 1


def test_idaq_stands_beside_what_it_does_without(folder):
    results, idaq = folder / "results", {"method": "idaq", "recipe": "compare"}
    write(results, "arm", "expert", "zero_shot", 0, [[1, 1], [1, 1]], **idaq)
    write(results, "arm", "expert", "few_shot", 0, [[2, 3], [2, 3]], success=[[1, 0], [1, 1]], **idaq)
    for adaptation, value in (("reference", 2), ("plain", 0)):
        write(results, "arm", "expert", "few_shot", 0, [[value] * 2] * 2, variant={"adaptation": adaptation}, **idaq)
    write(results, "arm", "expert", "few_shot", 0, [[9, 9], [9, 9]], method="focal", recipe="compare")
    shares = "0.80 | 0.40, 1 seed | 0.00, 1 seed | 0.80, 1 seed | 1.00, 1 seed (75%) | 4.80"  # the data's mean is 2.5
    assert readme.table(results, ["idaq", "arm"]).splitlines()[-1] == f"| arm, expert | shares | {shares} | 0 |"
    costs = {"task_blind": [-8, -8], "dataset_mean": [-2, -3], "best_known": [-1, -1]}
    write(results, "walk", "expert", "few_shot", 0, [[-5, -5], [-5, -5]], reference=costs, **idaq)
    line = "| walk, expert | returns | -8.00 | – | – | – | -5.00, 1 seed | -1.00 | 0 |"
    assert readme.table(results, ["idaq", "walk"]).splitlines()[-1] == line
    write(results, "run", "expert", "few_shot", 0, [[-5, -5], [-5, -5]], reference={"task_blind": [-8, -8]}, **idaq)
    assert readme.table(results, ["idaq", "run"]).splitlines()[-1].endswith("| -5.00, 1 seed | – | 0 |")
    write(results, "run", "expert", "few_shot", 0, [[9, 9], [9, 9]], variant={"candidates": 9}, **idaq)
    with pytest.raises(UserError, match="differ in more than --adaptation"):
        readme.table(results, ["idaq", "run"])
    with pytest.raises(UserError, match="no results of IDAQ"):
        readme.table(results, ["idaq", "slide"])


def test_success_stands_beside_the_return(folder):
    for seed, success in enumerate(([[1, 0], [1, 1]], [[0, 0], [1, 1]])):
        write(folder / "results", "arm", "expert", "few_shot", seed, [[5, 6], [7, 7]], success=success)
    line = next(line for line in readme.table(folder / "results", ["arm"]).splitlines() if "few-shot" in line)
    assert line.endswith(", success 62% |")


def test_levels_are_those_of_the_data_of_few_shot(folder):
    older = {**REFERENCE, "dataset_mean": [4, 5]}
    write(folder / "results", "slide", "medium", "zero_shot", 0, [[4, 4], [5, 5]], reference=older)
    lines = readme.table(folder / "results", ["slide"]).splitlines()
    assert "| dataset_mean | 2.50 |" in lines


def test_episodes_played_in_sequence_have_columns_of_their_own(tmp_path):
    folder = tmp_path / "results"
    references = {"best_known": [[6, 6], [8, 8]], "trivial": [[0, 0], [0, 0]]}
    for seed, returns in ((0, [[1, 4], [3, 4]]), (1, [[2, 5], [4, 5]])):
        write(folder, "maze", "log", "bamdp", seed, returns, reference=references)
    lines = readme.table(folder, ["maze"]).splitlines()
    assert lines[0] == "|  | episode 1 | episode 2 | sum |" and "| trivial | 0.0 | 0.0 | 0.0 |" in lines
    assert "| best_known | 7.0 | 7.0 | 14.0 |" in lines
    assert lines[-1].startswith("| meta_dt+fast | 2.5 | 4.5 | 7.0 [") and lines[-1].endswith("], 2 seeds |")
    online = write(folder, "maze", "online", "bamdp", 0, [[6, 6], [8, 8]], method="online", reference=references)
    assert readme.table(folder, ["maze"]).splitlines()[-2:] == [lines[-1], "| online+fast | 7.0 | 7.0 | 14.0, 1 seed |"]
    assert readme.table(folder, ["maze/log"]).splitlines() == lines
    with pytest.raises(UserError, match="no such results"):
        readme.table(folder, ["maze/replay"])
    for name in ("maze/log", "maze+fast"):
        with pytest.raises(UserError, match="of one family only"):
            readme.table(folder, [name, "maze"])
    small = write(folder, "maze", "online", "bamdp", 0, [[6, 6]], method="small", task_ids=[8], reference={})
    with pytest.raises(UserError, match="the methods of maze/online were scored on different tasks"):
        readme.table(folder, ["maze"])
    assert readme.table(folder, ["maze/log"]).splitlines() == lines
    small.unlink()
    write(folder, "maze", "replay", "bamdp", 0, [[6, 6], [8, 8]], reference=references)  # a name that "log" has too
    with pytest.raises(UserError, match="show maze/<kind of data>"):
        readme.table(folder, ["maze"])
    assert online.exists()


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"curves": {}}', '{"figures": [{}]}', '{"figures": 1}', '{"trials": [[]]}', '{"own_policy": []}']
)
def test_what_is_no_benchmark_is_named(text, tmp_path):
    path = tmp_path / "altered.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"altered.json: this is no result file of a benchmark"):
        file_tables.file_table(path)


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
    for recipe, ablation in (("paper", "none"), ("slow", "none"), ("fast", "no_prompt")):
        write(folder / "results", "slide", "medium", "few_shot", 1, [[6, 8], [7, 7]], recipe=recipe, ablation=ablation)
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
    folder = tmp_path / "results"
    write(folder, "robot", "medium", "pretrained", 0, [[6, 8], [7, 7]], normalisation=scale)
    assert "| meta_dt+fast, pretrained | 7.00, 1 seed, normalised 50.0 |" in readme.table(folder, ["robot"]).splitlines()


def test_behaviour_agents_are_told_by_their_tasks_and_last_returns(tmp_path):
    agent = tmp_path / "slide" / "multitask"
    agent.mkdir(parents=True)
    (agent / "config.json").write_text(json.dumps({"task_ids": [0, 1, 2]}))
    curve = {"steps": [500, 1000], "stochastic_returns": [[[0], [0], [0]], [[1, 3], [4, 4], [6, 6]]]}
    (agent / "curve.json").write_text(json.dumps(curve))
    assert file_tables.behaviour_table(tmp_path).splitlines()[-1] == "| slide | tasks 0 to 2 | 1,000 | 4 |"
    for task, last in ((0, [[1.0, 3.0]]), (1, [[6.0, 6.0]])):
        single = tmp_path / f"slope/task_{task:03d}/curve.json"
        single.parent.mkdir(parents=True)
        single.write_text(json.dumps({"steps": [50], "stochastic_returns": last}))
    assert file_tables.behaviour_table(tmp_path).splitlines()[-1] == "| slope | 2 agents, a task each | 50 each | 4 |"


def test_the_pages_show_the_committed_results():
    done = shell("-m tools.readme", "--check", "True")
    assert done.returncode == 0, done.stderr
    assert "README.md: 1 tables agree" in done.stdout and "RESULTS.md" in done.stdout


def test_the_readme_is_short_and_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220
    for page in PAGES:
        text = page.read_text()
        links = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not missing, f"{page.name}: {missing}"


def test_the_page_of_methods_shows_the_tested_example():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/own_method.md").read_text(), re.DOTALL)
    assert code in (ROOT / "tests/toy/bc.py").read_text()


def commands():
    """{script or module: flags} of the commands in the pages' blocks of shell, loops among them, and in lines of text."""
    found = {}
    for page in PAGES:
        kinds = page.read_text().split("```")  # text, block, text, block, …
        blocks = [block.partition("\n")[2] for block in kinds[1::2] if re.match(r"(shell|sh)?\n", block)]
        if page.parent.name != "borel":  # whose page names published commands that differ here
            blocks += [command for text in kinds[::2] for command in re.findall(r"`(python [^`<]+)`", text)]
        for block in blocks:
            block, named = block.replace("\\\n", " "), {}
            for line in block.splitlines():
                line = re.sub(r"\$([A-Z]+)", lambda match: named.get(match[1], match[0]), line)  # noqa: B023
                for part in re.split(r";|\|\|", line.partition(" #")[0]):
                    words = shlex.split(part.strip().removeprefix("do "))
                    if words and (assigned := re.fullmatch(r"([A-Z]+)=(.*)", words[0])):
                        named[assigned[1]] = assigned[2]
                    original = words[1:2] == ["-m"] and words[3:4] and words[3].endswith(".py")  # held by test_idaq_published.py
                    if words[:1] == ["python"] and not original:
                        script = words[2] if words[1] == "-m" else words[1]
                        flags = {word.split("=")[0] for word in words if word.startswith("--")}
                        found.setdefault(script, set()).update(flags)
    return found


def test_every_command_of_the_pages_has_a_script_that_knows_its_flags(capsys):
    found = commands()
    assert {"train_meta_dt.py", "baselines.borel.train_vae_offline", "tools.report"} < found.keys()
    for script, flags in found.items():
        name = script.removesuffix(".py")
        module = importlib.import_module("baselines.online_dt.__main__" if name == "baselines.online_dt" else name)
        if not flags:
            continue
        with pytest.raises(SystemExit):
            module.main(["--help"])
        known = {flag.replace("_", "-") for flag in re.findall(r"--[\w-]+", capsys.readouterr().out)}
        unknown = {flag for flag in flags if not {flag.replace("_", "-"), "--" + flag[5:].replace("_", "-")} & known}
        assert not unknown, f"{script} does not know {unknown}"
