"""What version 0.1 has written goes on: its checkpoints resume and validate by its own config.yaml.

`fixtures/version_0_1` holds, of each run, the checkpoint and the resolved config after the first
iteration, and the values of what had changed after the second one.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from toy_runs import checkpoint

from lightning_ript.cli import main

FIXTURES = Path(__file__).parent / "fixtures" / "version_0_1"
REFERENCE = "reference."  # version 0.1 kept a second policy there


def test_no_run_is_forgotten():
    assert {path.name for path in FIXTURES.iterdir()} == {"toy", "critic", "kl", "quest"}


def comparable(parameter, value):
    """Without the bias of an attention's keys, which changes no attention.

    Its gradient is rounding alone, another one on every processor, and Adam makes steps of it.
    """
    if parameter.endswith("in_proj_bias"):
        queries, _, values = value.chunk(3)
        return torch.cat([queries, values])
    return value


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["toy", "critic", "kl", "quest"])
def test_it_goes_on_as_it_would_have(name, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        (FIXTURES / name / "config.yaml").read_text().replace("RUN_DIR", str(tmp_path))
    )
    (tmp_path / "checkpoints").mkdir()
    last = tmp_path / "checkpoints/last.ckpt"
    shutil.copy(FIXTURES / name / "last.ckpt", last)

    main(["validate", f"--config={config}", f"--ckpt_path={last}"])
    evaluated = json.loads((tmp_path / "evaluation/last.json").read_text())
    assert evaluated["overall"]["episodes"] > 0

    main(["fit", f"--config={config}", "--trainer.max_epochs=2"])
    run = checkpoint(tmp_path)
    assert run["epoch"] == 1
    expected = torch.load(FIXTURES / name / "after_2.pt", weights_only=True)
    learned = {n: v for n, v in expected.items() if not n.startswith(REFERENCE)}
    assert learned
    for parameter, value in learned.items():
        torch.testing.assert_close(
            comparable(parameter, run["state_dict"][parameter]),
            comparable(parameter, value),
            rtol=1e-5,
            atol=1e-6,
            msg=parameter,
        )
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["iteration"] for entry in history] == [1, 2]
