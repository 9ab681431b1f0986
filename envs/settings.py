"""The settings files of our families, `configs/<env_type>.yaml`, as far as the environments themselves need them."""

from functools import lru_cache
from pathlib import Path

import yaml

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache
def family_settings(env_type):
    """env_name, entry_point, max_episode_steps and the rest of one family, a dict. The scripts check it (src/run/config.py)."""
    return yaml.load((CONFIG_DIR / f"{env_type}.yaml").read_text(encoding="utf-8"), LOADER)


def all_families():
    """{env_name: settings} of every file in configs/."""
    settings = (family_settings(path.stem) for path in sorted(CONFIG_DIR.glob("*.yaml")))
    return {values["env_name"]: values for values in settings}
