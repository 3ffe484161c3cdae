"""Which code a result was made with."""

import subprocess

from lightning_ript.storage.revision import revision


def test_a_clone_and_its_changes(tmp_path):
    assert revision(tmp_path) is None
    me = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for command in (["init", "-q"], [*me, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    revision.cache_clear()
    clean = revision(tmp_path)
    assert len(clean) == 12
    (tmp_path / "file").write_text("")
    subprocess.run(["git", "add", "file"], cwd=tmp_path, check=True)
    revision.cache_clear()
    assert revision(tmp_path) == f"{clean}-dirty"
