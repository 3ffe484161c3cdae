"""Files and folders on the Hugging Face hub, named `hf://owner/repo/path/in/repo`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SCHEME = "hf:/"  # with one slash, as a path makes of two
_ADDRESS = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<path>[^/]+(/[^/]+)*)"
)

_FOLDER = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<path>[^/]+(/[^/]+)*))?/?"
)


def is_on_hub(place: str | Path) -> bool:
    """Whether a place is the hub's and not a path on this machine."""
    return str(place).startswith(SCHEME)


def local_file(place: str | Path) -> Path:
    """Where a file lies on this machine, after downloading it if it is the hub's.

    Downloads stay in the hub client's own cache (`HF_HOME`), so that the next run needs no network;
    with `HF_HUB_OFFLINE=1` the hub is never asked.

    Args:
        place: A path, or `hf://owner/repo/path/in/repo`, or `hf://owner/repo@revision/path/in/repo`
            with a branch, tag or commit. A path need not exist.

    Raises:
        ValueError: The address is malformed.
        OSError: The hub has no such file, or can neither be reached nor has been asked before.
    """
    if not is_on_hub(place):
        return Path(place)
    address = _ADDRESS.fullmatch(str(place))
    if address is None:
        raise ValueError(
            f"{place} is no address of a file on the hub: write hf://owner/repo/path/in/repo or "
            "hf://owner/repo@revision/path/in/repo"
        )
    from huggingface_hub import hf_hub_download

    with explained(str(place)):
        path = hf_hub_download(address["repo"], address["path"], revision=address["revision"])
    return Path(path)


def local_folder(place: str | Path, patterns: Sequence[str]) -> Path:
    """Where a folder lies on this machine, after downloading what is needed of it from the hub.

    Args:
        place: A path, or `hf://owner/repo`, or `hf://owner/repo@revision`, either with or without
            the path of a folder in the repository. A path need not exist.
        patterns: Names of the files needed, as `*.json`; what lies in folders below is not.

    Raises:
        ValueError: The address is malformed.
        OSError: The hub has no such files, or can neither be reached nor has been asked before.
    """
    if not is_on_hub(place):
        return Path(place)
    address = _FOLDER.fullmatch(str(place))
    if address is None:
        raise ValueError(
            f"{place} is no address of a folder on the hub: write hf://owner/repo or "
            "hf://owner/repo/folder, with @revision after the repository for one"
        )
    from huggingface_hub import snapshot_download

    below = f"{address['path']}/" if address["path"] else ""
    with explained(str(place)):
        path = snapshot_download(
            address["repo"],
            revision=address["revision"],
            allow_patterns=[below + pattern for pattern in patterns],
            ignore_patterns=[f"{below}*/*"],
        )
    return Path(path) / below


def local_dataset(place: str | Path, patterns: Sequence[str] | None = None) -> Path:
    """Where a dataset lies on this machine, after downloading it if it is the hub's.

    Args:
        place: A folder, or `hf://owner/name` or `hf://datasets/owner/name`, with `@revision` after
            it for one. A folder need not exist.
        patterns: Names of the files needed; all by default.

    Raises:
        ValueError: The address is malformed.
        OSError: The hub has no such dataset, or can neither be reached nor has been asked before.
    """
    if not is_on_hub(place):
        return Path(place)
    address = _FOLDER.fullmatch(str(place).replace("hf://datasets/", "hf://"))
    if address is None or address["path"]:
        raise ValueError(
            f"{place} is no address of a dataset on the hub: write hf://owner/name or "
            "hf://owner/name@revision"
        )
    from huggingface_hub import snapshot_download

    with explained(f"the dataset {place}"):
        found = snapshot_download(
            address["repo"],
            revision=address["revision"],
            repo_type="dataset",
            allow_patterns=None if patterns is None else list(patterns),
        )
        return Path(found)


@contextmanager
def explained(wanted: str) -> Iterator[None]:
    """Turns what the hub's client raises into one sentence.

    Args:
        wanted: What the block downloads, in words; the sentence begins with it.

    Raises:
        OSError: Instead of the client's errors.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise FileNotFoundError(
            f"{wanted} has not been downloaded before and {why}: run this once with access to "
            "huggingface.co, or download it elsewhere and name the local path"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{wanted} cannot be had: the hub shows no such repository. Check the name; for a "
            "private or gated one log in with `hf auth login`"
        ) from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{wanted} does not exist: the hub has the repository, but no such file or revision in "
            "it"
        ) from error
    # The client passes on its HTTP library's errors, which differ between its versions.
    except Exception as error:
        reason = first_line(error)
        raise ConnectionError(
            f"{wanted} could not be downloaded ({reason}): try again, what has arrived is kept"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, without what follows in further lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
