"""The optional part of the package: one shared library with a plain C interface. Everything else is in pyproject.toml.

Where there is no C++ compiler, or it fails, the installation says so and goes on: numpy does the work then.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
LIBRARY = "billhook.runtime._native"


def builder() -> Any:
    """native/build.py, which compiles without setuptools as well."""
    spec = importlib.util.spec_from_file_location("billhook_native_build", ROOT / "native" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildLibrary(build_ext):
    """Compiles with native/build.py. The file's name has no tag of a Python version, as it knows nothing of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        native, target = builder(), Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # An editable installation compiles elsewhere and copies; what is in place may be up to date.
        if native.IN_PLACE.exists():
            shutil.copyfile(native.IN_PLACE, target)
        try:
            native.build(target)
        except native.NoCompiler as error:
            target.unlink(missing_ok=True)
            raise CompileError(f"native kernels were not built, numpy will be used: {error}") from error


class Wheel(bdist_wheel):
    """One wheel for every Python of a platform; for every platform when it holds no library."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        library = next(iter(self.get_finalized_command("build_ext").get_outputs()), "")
        return "py3", "none", platform if Path(library).is_file() else "any"


setup(
    ext_modules=[Extension(LIBRARY, sources=[], optional=True)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
