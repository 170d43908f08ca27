"""`python -m decode_worker CONFIG_JSON`: one decode worker without Ray."""

import sys

from decode_worker.process import run
from diptych.config import WorkerConfig
from diptych.launch import main

sys.exit(main(run, WorkerConfig))
