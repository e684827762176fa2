"""What pyproject.toml cannot say: a wheel holds nothing that an earlier build has left."""

import shutil

from setuptools import setup
from setuptools.command.build import build


class CleanBuild(build):
    """Builds from nothing: setuptools packs whatever lies in build/lib, also modules long gone."""

    def run(self) -> None:
        """Remove what is left of an earlier build, then build."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build": CleanBuild})
