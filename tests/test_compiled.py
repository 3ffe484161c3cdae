"""Compiled scenes in the cache: the same model, whoever compiled it."""

import logging
import os
import sys
import types
from pathlib import Path

import mujoco
import numpy as np
import pytest

from lightning_ript.envs.libero import compiled
from lightning_ript.envs.libero.small_textures import with_small_textures
from lightning_ript.storage.files import cache_folder

SCENE = """
<mujoco>
  <asset><texture name="t" type="2d" file="{texture}"/><material name="m" texture="t"/></asset>
  <worldbody>
    <body pos="0 0 1"><freejoint/><geom type="box" size=".1 .2 .3" material="m"/></body>
    <geom type="plane" size="1 1 .1"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def texture(tmp_path):
    from PIL import Image

    path = tmp_path / "texture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def scene(texture):
    return SCENE.format(texture=texture)


def files():
    return sorted((cache_folder() / "compiled").glob("*.mjb"))


def content(model):
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def refuse(monkeypatch):
    def compile_elsewhere(xml, path):
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiled, "_compile_elsewhere", compile_elsewhere)


def test_the_model_is_the_one_that_mujoco_compiles(scene, monkeypatch):
    expected = content(mujoco.MjModel.from_xml_string(scene))
    assert content(compiled.compiled_model(scene)) == expected
    assert len(files()) == 1
    refuse(monkeypatch)
    assert content(compiled.compiled_model(scene)) == expected


def test_a_changed_texture_or_scene_is_another_model(scene, texture):
    compiled.compiled_model(scene)
    os.utime(texture, (1, 1))
    compiled.compiled_model(scene)
    compiled.compiled_model(scene.replace(".1 .2 .3", ".1 .2 .4"))
    assert len(files()) == 3


@pytest.mark.parametrize("left", [0, 10, 1000])
def test_a_damaged_file_is_made_anew(scene, left, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = content(compiled.compiled_model(scene))
    (file,) = files()
    file.write_bytes(file.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        assert content(compiled.compiled_model(scene)) == expected
    assert "is no compiled scene and is made anew" in caplog.text
    assert file.stat().st_size > 1000
    assert not list(file.parent.glob(".*"))
    assert not Path("MUJOCO_LOG.TXT").exists()


def test_without_a_cache_it_is_compiled_all_the_same(scene, caplog):
    cache_folder()
    (cache_folder() / "compiled").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        model = compiled.compiled_model(scene)
    assert content(model) == content(mujoco.MjModel.from_xml_string(scene))
    assert "could not be kept" in caplog.text


def test_what_mujoco_refuses_is_said():
    with pytest.raises(ValueError, match=r"(?s)MuJoCo cannot compile the scene: .*nonsense"):
        compiled.compiled_model("<mujoco><nonsense/></mujoco>")
    assert not files()


def test_the_cache_is_bounded(scene, monkeypatch):
    size = mujoco.mj_sizeModel(mujoco.MjModel.from_xml_string(scene))
    monkeypatch.setattr(compiled, "KEPT_BYTES", 2.5 * size)
    for number in range(4):
        compiled.compiled_model(scene.replace(".3", f".3{number}"))
        for age, file in enumerate(sorted(files(), key=os.path.getmtime, reverse=True)):
            os.utime(file, (1e9 - age, 1e9 - age))
    assert len(files()) == 2


def test_others_may_write_and_forget_at_the_same_time(scene, monkeypatch, caplog):
    compiled.compiled_model(scene)
    glob = Path.glob

    def then_gone(folder, pattern):
        found = [*glob(folder, pattern), folder / ".another process's draft.1.mjb"]
        return iter(found)

    monkeypatch.setattr(Path, "glob", then_gone)
    with caplog.at_level(logging.WARNING):
        compiled.compiled_model(scene.replace(".3", ".31"))
    assert not caplog.records


def test_robosuite_takes_its_models_from_the_cache(scene, monkeypatch):
    class MjSim:  # robosuite's own would bring OpenGL into this process
        def __init__(self, model):
            self.model = model

        @classmethod
        def from_xml_string(cls, xml):
            raise AssertionError("compiled by robosuite")

    module = types.ModuleType("robosuite.utils.binding_utils")
    module.MjSim = MjSim
    for name in ("robosuite", "robosuite.utils", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    before = vars(MjSim)["from_xml_string"]
    asked = []

    def compiled_model(xml):
        asked.append(xml)
        return mujoco.MjModel.from_xml_string(xml)

    monkeypatch.setattr(compiled, "compiled_model", compiled_model)
    with compiled.models_from_cache(lambda xml: xml.replace(".3", ".5")):
        first, second = (MjSim.from_xml_string(scene) for _ in range(2))
    assert vars(MjSim)["from_xml_string"] is before
    assert asked == [scene.replace(".3", ".5")], "LIBERO builds every scene twice"
    expected = content(mujoco.MjModel.from_xml_string(asked[0]))
    assert [content(sim.model) for sim in (first, second)] == [expected] * 2
    first.model.geom_size[:] = 7  # a copy of its own
    assert content(second.model) == expected


def test_textures_are_halved_while_they_are_too_large(scene, texture):
    from PIL import Image

    assert with_small_textures(scene, image_size=16) == scene
    small = with_small_textures(scene, image_size=5)  # at most 20 texels
    assert small != scene
    assert small == with_small_textures(scene, image_size=5)
    (file,) = (cache_folder() / "textures").iterdir()
    assert str(file) in small
    with Image.open(file) as halved, Image.open(texture) as whole:
        assert halved.size == (16, 16)
        means = np.asarray(whole, float).reshape(16, 4, 16, 4, 3).mean((1, 3))
        assert np.abs(np.asarray(halved) - means).max() <= 0.5
    mujoco.MjModel.from_xml_string(small)


def test_textures_with_a_palette_are_halved_too(scene, texture):
    from PIL import Image

    with Image.open(texture) as whole:
        whole.quantize(16).save(texture)
    with_small_textures(scene, image_size=8)
    (file,) = (cache_folder() / "textures").iterdir()
    with Image.open(file) as halved:
        assert (halved.mode, halved.size) == ("RGB", (32, 32))
