"""Makes the tests' processes start a third sooner; Python itself imports this module.

torchmetrics, which Lightning imports, loads SciPy, Matplotlib, torchvision and transformers where
they are installed, for metrics that nothing here uses. Here it finds none of them.
`test_from_the_wheel` in test_entry.py starts the program without this module, as a user does.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder

UNUSED = ("matplotlib", "scipy", "torchvision", "transformers")


class Torchmetrics(MetaPathFinder):
    """Finds torchmetrics, and hides from it what it would load for nothing."""

    def find_spec(self, fullname, path, target=None):
        if fullname != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None:
            everything = spec.loader.exec_module
            spec.loader.exec_module = lambda module: without_unused(everything, module)
        return spec


def without_unused(execute, module):
    """Executes a module while `lightning_utilities` says that the unused packages are missing."""
    from unittest.mock import patch

    from lightning_utilities.core import imports

    class Requirement(imports.RequirementCache):
        def __bool__(self):
            return not str(self.requirement).startswith(UNUSED) and super().__bool__()

    is_there = imports.package_available
    with patch.multiple(
        imports,
        RequirementCache=Requirement,
        package_available=lambda name: name not in UNUSED and is_there(name),
    ):
        execute(module)


sys.meta_path.insert(0, Torchmetrics())
