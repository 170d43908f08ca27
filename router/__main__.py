"""`python -m router CONFIG_JSON`: one router without Ray."""

import sys

from diptych.config import RouterConfig
from diptych.launch import main
from router.process import run

sys.exit(main(run, RouterConfig))
