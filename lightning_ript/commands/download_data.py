"""LIBERO's published demonstrations from the hub: `lightning-ript data download`."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning_ript.commands.check_data import check
from lightning_ript.envs.libero.suites import suite_tasks
from lightning_ript.storage.files import make_folder
from lightning_ript.storage.hub import explained

log = logging.getLogger(__name__)

HUB_DATASET = "yifengzhu-hf/LIBERO-datasets"


def download(suite: str, out: Path = Path("datasets")) -> None:
    """Downloads LIBERO's demonstrations of a suite, a file of 50 per task, and checks them.

    They come to a folder named after the suite. When it is interrupted, the same command goes on
    where it was; files that are there already are not downloaded again.

    Args:
        suite: The suite.
        out: Folder for the suites' folders.

    Raises:
        ValueError: There is no such suite.
        OSError: The hub cannot be reached.
        SystemExit: Something is missing or broken afterwards, with status 1.
    """
    tasks = suite_tasks(suite)
    make_folder(out, "--out")
    from huggingface_hub import snapshot_download

    log.info("%d files from the hub's %s to %s.", len(tasks), HUB_DATASET, out / suite)
    with explained(f"the dataset {HUB_DATASET}"):
        snapshot_download(
            HUB_DATASET,
            repo_type="dataset",
            allow_patterns=[f"{suite}/*.hdf5"],
            local_dir=out,
        )
    check(out / suite, suite)
