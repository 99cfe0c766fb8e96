"""Let Hydra find `ablations=`, `sweeps=` and `slurm=`, the groups that users edit, at the top of a checkout.

A wheel carries the same folders inside `flash_grpo/conf`, where Hydra finds them without help.
"""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

CHECKOUT = Path(__file__).resolve().parents[2]
GROUPS = ("ablations", "sweeps", "slurm")


class CheckoutSource(FileConfigSource):
    """The top folder of a checkout as a source of the three groups, and of nothing else."""

    @staticmethod
    def scheme() -> str:
        return "checkout"

    def is_group(self, config_path: str) -> bool:
        return _belongs(config_path) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        return _belongs(config_path) and super().is_config(config_path)


class CheckoutSearchPath(SearchPathPlugin):
    """A plugin that adds the checkout to the search path of our programs. Hydra calls it for every Hydra program."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ours = ("flash_grpo/conf", "flash_grpo.conf")
        paths = [element.path or "" for element in search_path.get_path()]
        if any(path.endswith(ours) for path in paths) and (CHECKOUT / "train.py").is_file():
            search_path.append(provider="checkout", path=f"checkout://{CHECKOUT}")


def _belongs(config_path: str) -> bool:
    return config_path == "" or config_path.split("/")[0] in GROUPS
