import logging
import os
import pickle
import subprocess
import sys

import pytest

from lightning_ript.envs.libero import LiberoSpec, assets, graphics


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A machine without assets and without a network; returns its home."""
    monkeypatch.delenv(assets.ASSETS_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(assets, "libero_root", lambda: tmp_path / "package")
    monkeypatch.setattr(assets, "PACKAGE", "no_such_package_of_assets")
    monkeypatch.setattr(assets, "_download", lambda: None)
    return tmp_path


def pack(folder):
    for name in assets.FOLDERS:
        (folder / name).mkdir(parents=True)
    return folder


def test_the_order_of_sources(nothing, monkeypatch):
    found = []
    assert assets.resolve_assets(None, "libero_object").standin
    monkeypatch.setattr(assets, "_download", lambda: found.append(1) or pack(nothing / "hub"))
    assert assets.resolve_assets(None, "libero_goal").path == nothing / "hub"
    assert found, "the hub was not asked"
    cached = pack(nothing / ".cache" / "libero" / "assets")
    assert assets.resolve_assets(None, "libero_goal").path == cached
    installed = pack(nothing / "package" / "assets")
    assert assets.resolve_assets(None, "libero_goal").path == installed
    pack(nothing / "packages" / "of_the_registry" / "assets")
    monkeypatch.syspath_prepend(nothing / "packages")
    monkeypatch.setattr(assets, "PACKAGE", "of_the_registry")
    packaged = nothing / "packages" / "of_the_registry" / "assets"
    assert assets.resolve_assets(None, "libero_goal").path == packaged
    variable = pack(nothing / "variable")
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(variable))
    assert assets.resolve_assets(None, "libero_goal").path == variable
    explicit = pack(nothing / "explicit")
    assert assets.resolve_assets(str(explicit), "libero_goal").path == explicit


def test_assets_are_settled_once_for_the_workers_too(nothing, monkeypatch):
    monkeypatch.setattr(graphics, "check_backend", lambda: None)
    spec = LiberoSpec("libero_object")
    spec.check()
    pack(nothing / ".cache" / "libero" / "assets")  # comes too late for this run
    monkeypatch.setattr(assets, "_download", lambda: pytest.fail("the hub was asked"))
    sent = pickle.loads(pickle.dumps(spec))
    assert sent == spec
    assert sent.found_assets == spec.found_assets
    assert sent.found_assets.standin
    assert sent.describe()["standin_assets"]
    assert sent.caveats() == (assets.STANDIN_CAVEAT,)
    assert sent.describe()["caveats"] == [assets.STANDIN_CAVEAT]
    assert not LiberoSpec("libero_object").found_assets.standin
    assert LiberoSpec("libero_object").caveats() == ()


def test_only_libero_object_has_standins(nothing):
    with pytest.raises(
        FileNotFoundError,
        match=r"libero_goal needs LIBERO's assets.*\[assets\]",
    ):
        assets.resolve_assets(None, "libero_goal")


@pytest.mark.parametrize("how", ["setting", "variable"])
def test_a_folder_that_is_named_must_hold_assets(nothing, monkeypatch, how):
    wrong = str(nothing / "wrong")
    if how == "variable":
        monkeypatch.setenv(assets.ASSETS_VARIABLE, wrong)
    with pytest.raises(
        FileNotFoundError, match=f"{wrong}, which is not a folder of LIBERO's assets"
    ):
        assets.resolve_assets(wrong if how == "setting" else None, "libero_object")


def test_standins_are_known_where_they_are_named(nothing):
    folder = str(assets.resolve_assets(None, "libero_object").path)
    assert assets.resolve_assets(folder, "libero_object").standin
    with pytest.raises(FileNotFoundError, match="of which libero_goal cannot be built"):
        assets.resolve_assets(folder, "libero_goal")


def test_standins_are_announced_loudly_and_others_quietly(nothing, caplog):
    with caplog.at_level(logging.INFO):
        assets.resolve_assets(None, "libero_object").announce()
        assets.Assets(nothing, "named by the test").announce()
    loud, quiet = caplog.records
    assert loud.levelno == logging.WARNING
    assert "NOT comparable" in loud.getMessage()
    assert quiet.levelno == logging.INFO
    assert "named by the test" in quiet.getMessage()


def test_an_unreachable_hub_is_said_and_survived(monkeypatch, caplog, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("no network")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    assert assets._download() is None
    assert "no network" in caplog.text


def test_a_download_counts_only_when_complete(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    whole = tmp_path / ".cache" / "libero" / "assets"
    broken = [True]

    def snapshot(*_args, local_dir, **_kwargs):
        asked.append(1)
        os.makedirs(os.path.join(local_dir, "scenes"), exist_ok=True)
        if broken:
            raise ConnectionError("cut off")
        for name in assets.FOLDERS:
            os.makedirs(os.path.join(local_dir, name), exist_ok=True)

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert assets._download() is None
    assert not whole.exists()
    # What hf-libero leaves when its download is interrupted lies where the whole would.
    (whole / "scenes" / "kept").mkdir(parents=True)
    assert assets._download() is None
    assert not whole.exists()
    broken.clear()
    assert assets._download() == whole
    assert not assets._missing(whole)
    assert (whole / "scenes" / "kept").is_dir()
    assert len(asked) == 3
    assert assets._download() == whole  # as a rank does that has waited for another
    assert len(asked) == 3


def test_libero_is_configured_without_a_question(tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from lightning_ript.envs.libero.assets import configure_libero;"
        "configure_libero(Path(sys.argv[1]));"
        "import libero.libero as L; assert L.get_assets_path() == sys.argv[1];"
        "assert L.get_libero_path('assets') == sys.argv[1];"
        "assert Path(L.get_libero_path('bddl_files')).is_dir()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".libero").exists()
    assert done.stdout == ""
