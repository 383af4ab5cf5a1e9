"""What a wheel of Ava holds beside its Python files: the compiled kernels, and the line that knows the Auto classes.

Without a compiler it goes on without the kernels.
"""

import importlib.util
import sys
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("ava_core") / "kernels"


class CustomBuildHook(BuildHookInterface):
    """Hatchling's hook, named in pyproject.toml."""

    def initialize(self, version, build_data):
        """Put the compiled library into the wheel, or beside its sources for an editable install."""
        kind = "force_include_editable" if version == "editable" else "force_include"
        build_data[kind][str(Path(self.root) / "ava_core" / "auto_classes.pth")] = "ava_moe.pth"
        build = _load(Path(self.root) / KERNELS / "build.py")
        fault = build.compile_kernels()
        if fault:
            self.app.display_warning(f"without native kernels, training on a CPU is slower: {fault}")
            return
        library = build.library_path()
        build_data["force_include"][str(library)] = str(KERNELS / library.name)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _load(path: Path):
    # By its path: importing the package would need torch, which isn't there while it is built.
    spec = importlib.util.spec_from_file_location("ava_kernels_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
