"""The policies that come with the repository: whole, small, and what their rows under results/ say, to the last digit."""

import re

import numpy as np
import pytest
from helpers import ROOT, shell

from src.run.files import read_json
from src.run.provenance import hardware
from tools import models

TRAINED = ROOT / "trained"
FOLDERS = sorted(path.parent for path in TRAINED.glob("*/*/*/config.json"))
IQL = TRAINED / "point_robot/replay/iql+compare"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(TRAINED).as_posix())
def test_its_returns_are_those_of_its_rows(folder):
    models.check(folder)
    config, earned = models.read_config(folder), read_json(folder / "results.json")
    for name, row in config["rows"].items():
        assert models.is_row(earned[name], ROOT / "results" / row)
        assert row.startswith(f"{folder.relative_to(TRAINED).as_posix()}/{name}-")
    assert config["weights"] == "float32" and not config["provenance"]["commit"].endswith("-dirty")
    assert "under results/ to the last digit" in (folder / "README.md").read_text()


def test_all_of_them_are_small():
    assert IQL in FOLDERS and sum(path.stat().st_size for path in TRAINED.rglob("*") if path.is_file()) < 10e6


def test_a_row_is_reproduced_in_a_process_of_its_own():
    """Digit by digit where the processor and torch are those that measured it; elsewhere the last bits may differ."""
    done = shell("-m tools.models", "measure", IQL)
    told = read_json(IQL / "config.json")["provenance"]
    if (told["hardware"], told["versions"]["torch"]) == (hardware(), models.torch.__version__):
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("every return as recorded") == done.stdout.count(": the same returns") == 2
    else:
        assert done.returncode == 0 and (": the same returns" in done.stdout or "last bits of sums" in done.stderr)
    found = [float(number) for number in re.findall(r": return (\S+);", done.stdout)]
    earned = read_json(IQL / "results.json")
    np.testing.assert_allclose(found, [np.mean(earned[name]["returns"]) for name in ("few_shot", "zero_shot")], atol=0.1)


def test_other_weights_do_not_pass_for_its_row(tmp_path, capsys):
    """Half precision earns something else, and neither `measure` nor the comparison with the row hides it."""
    config = models.read_config(IQL)
    env = models.find_env(config)
    trained = models.read_trained(IQL, "iql", env, models.find_device("cpu"), config["settings"])
    models.copy(IQL, tmp_path / "half", models.FILES)
    trained.save(tmp_path / "half", True)
    config["regimes"].pop("zero_shot")  # half of the time
    config["model_sha256"] = models.digest(models.load_tensors(tmp_path / "half/model.safetensors"))
    models.write_json(tmp_path / "half/config.json", config)
    assert not models.measure(tmp_path / "half")
    out = capsys.readouterr().out
    assert "largest difference" in out and "other returns" in out


def test_what_nothing_explains_is_an_error():
    here = models.provenance()
    with pytest.raises(models.UserError, match="now make others"):
        models.explain(here)
    models.explain({**here, "hardware": "another one"})


def test_the_lines_of_its_page():
    (lines,) = re.findall(r"```python\n(.*?)```", (TRAINED / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(lines, names)
    assert names["episode"] == 3 and names["truncated"] and np.isfinite(names["reward"]) and len(names["agent"].lived) == 3
