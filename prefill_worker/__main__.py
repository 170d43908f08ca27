"""`python -m prefill_worker CONFIG_JSON`: one prefill worker without Ray."""

import sys

from diptych.config import WorkerConfig
from diptych.launch import main
from prefill_worker.process import run

sys.exit(main(run, WorkerConfig))
