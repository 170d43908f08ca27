"""A Ray of a test's own in a process that may have had another before."""

from __future__ import annotations

import os
import sys

import pytest
from ray._raylet import AuthenticationTokenLoader, Config

from deploy.ray_runtime import private_environment


def use_environment_of_our_own(patch: pytest.MonkeyPatch) -> None:
    """What `diptych up` sets before Ray is imported, for a Ray that has been imported already: it remembers both its
    settings and its token. Workers find the tests' helpers."""
    for name, value in private_environment().items():
        patch.setenv(name, value)
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
