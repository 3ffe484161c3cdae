"""Files from elsewhere are data: what they would have executed or read is refused."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from toy_runs import checkpoint, fit

from lightning_ript.demos.hdf5 import opened
from lightning_ript.demos.lerobot import LeRobotDataset
from lightning_ript.demos.trajectory import Reading
from lightning_ript.envs.libero.suites import read_states
from lightning_ript.policies.flow.lerobot import read_published
from lightning_ript.policies.safetensor_files import INDEX, shards
from lightning_ript.policies.weights import read_tensors
from lightning_ript.storage.journal import Journal


class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path), 0o777, True)


def test_it_is_malicious(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "done")))
    assert (tmp_path / "done").exists()


@pytest.fixture
def run(tmp_path):
    """A run of one iteration, in whose checkpoint something waits."""
    folder = tmp_path / "run"
    contents = fit(folder, 1)
    contents["callbacks"]["mine"] = Malice(tmp_path / "done")
    torch.save(contents, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint(run, tmp_path, capsys, command):
    from toy_runs import arguments

    from lightning_ript.cli import main

    last = run / "checkpoints" / "last.ckpt"
    with pytest.raises(SystemExit) as caught:
        main(arguments(run, 2, f"--ckpt_path={last}", command=command))
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "holds more than data (os.makedirs), which would be executed" in said
    assert not (tmp_path / "done").exists()


def test_a_checkpoint_that_is_trusted(run, tmp_path):
    fit(run, 2, "--weights_only=false")
    assert (tmp_path / "done").exists()
    assert checkpoint(run)["epoch"] == 1


def test_weights_of_a_policy(tmp_path):
    torch.save({"net": Malice(tmp_path / "done")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"holds more than data \(os\.makedirs\)"):
        read_tensors(tmp_path / "weights.pth")
    assert not (tmp_path / "done").exists()


def test_a_journal(tmp_path, caplog):
    journal = Journal(tmp_path / "journal", "iteration0_x", clean=True)
    journal.folder.mkdir(parents=True)
    torch.save([Malice(tmp_path / "done")], journal.folder / "group_0.pt")
    assert list(journal.read(lambda number: None, lambda number: True)) == []
    assert "cannot be read" in caplog.text
    assert not (tmp_path / "done").exists()


def test_initial_states(tmp_path):
    path = tmp_path / "task.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malice(tmp_path / "done")))
    with pytest.raises(ValueError, match=r"it wants to load os\.makedirs"):
        read_states(path)
    assert not (tmp_path / "done").exists()
    with pytest.raises(ValueError, match="not a file of initial states"):
        read_states(object_array(tmp_path / "objects.npz", tmp_path / "done"))
    assert not (tmp_path / "done").exists()


def object_array(path, done):
    array = np.empty(1, dtype=object)
    array[0] = Malice(done)
    np.savez(path, states=array)
    return path


def test_a_zip_that_leads_out_of_its_folder(tmp_path):
    """Nothing is unpacked from it, whatever it holds."""
    path, inner = tmp_path / "in" / "task.init", io.BytesIO()
    path.parent.mkdir()
    torch.save(np.zeros((1, 3)), inner)
    with zipfile.ZipFile(inner) as good, zipfile.ZipFile(path, "w") as archive:
        for name in good.namelist():
            archive.writestr(name, good.read(name))
        archive.writestr("../escaped", "here")
    assert read_states(path).shape == (1, 3)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "task.init"]


def test_hdf5_files_that_read_others(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"private!")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((2, 7))
    makers = {
        "links to another file, at data/demo_0": lambda file: file.__setitem__(
            "data/demo_0", h5py.ExternalLink(str(tmp_path / "other.hdf5"), "data/demo_0")
        ),
        "has its data/demo_0/actions in another file": lambda file: file.create_dataset(
            "data/demo_0/actions", (8,), np.uint8, external=[(str(secret), 0, 8)]
        ),
        "has its data/demo_0/obs in another file": lambda file: virtual(file, tmp_path),
    }
    for number, (said, make) in enumerate(makers.items()):
        path = tmp_path / f"{number}.hdf5"
        with h5py.File(path, "w") as file:
            file.create_group("data")
            make(file)
        with pytest.raises(ValueError, match=said), opened(path):
            pass
    with opened(tmp_path / "other.hdf5") as data:
        assert data["demo_0/actions"].shape == (2, 7)


def virtual(file, folder):
    layout = h5py.VirtualLayout(shape=(2, 7), dtype=float)
    layout[:] = h5py.VirtualSource(folder / "other.hdf5", "data/demo_0/actions", shape=(2, 7))
    file.create_virtual_dataset("data/demo_0/obs", layout)


def test_published_folders_that_name_files_elsewhere(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match=r"names \.\./outside\.safetensors, which is not below"):
        shards(tmp_path)


def test_a_policy_that_names_its_state_elsewhere(tmp_path):
    step = {"registry_name": "normalizer_processor", "config": {}, "state_file": "/etc/passwd"}
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    (tmp_path / "policy_postprocessor.json").write_text(json.dumps({"steps": []}))
    features = {
        "input_features": {"observation.state": {"type": "STATE", "shape": [8]}},
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    }
    (tmp_path / "config.json").write_text(json.dumps({"type": "pi0", **features}))
    with pytest.raises(ValueError, match="names /etc/passwd, which is not below"):
        read_published(tmp_path, "pi0")


def test_a_dataset_that_names_its_data_elsewhere(tmp_path):
    fixture = Path(__file__).parent / "fixtures" / "lerobot"
    (dataset, *_) = sorted(path.parent.parent for path in fixture.rglob("meta/info.json"))
    import shutil

    shutil.copytree(dataset, tmp_path / "copy")
    info = tmp_path / "copy" / "meta" / "info.json"
    told = json.loads(info.read_text())
    info.write_text(json.dumps({**told, "data_path": "../../{chunk_index}/{file_index}"}))
    (task, *_) = LeRobotDataset(tmp_path / "copy").by_task(None)
    with pytest.raises(ValueError, match=r"names \.\./\.\./0/0, which is not below"):
        task.read(Reading(), None)


def mischief(*arguments, **named):
    """What a config would call."""
    Path(os.environ["MISCHIEF"]).touch()


@pytest.mark.parametrize(
    "setting",
    [
        "--model",
        "--data",
        "--model.init_args.policy",
        "--model.init_args.optimizer",
        "--data.init_args.environment",
        "--data.init_args.contexts",
        "--trainer.callbacks+",
        "--trainer.logger",
        "--trainer.strategy",
        "--trainer.profiler",
    ],
)
def test_class_paths_that_are_functions(tmp_path, capsys, setting, monkeypatch):
    monkeypatch.setenv("MISCHIEF", str(tmp_path / "done"))
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, 1, f"{setting}=test_untrusted.mischief")
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err
    assert not (tmp_path / "done").exists()
