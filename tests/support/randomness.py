"""The random seed of a run: MUSTER_FAULT_SEED, or a new one."""

import os
from random import SystemRandom

SEED = int(os.environ.get("MUSTER_FAULT_SEED") or SystemRandom().randrange(2**32))
os.environ["MUSTER_FAULT_SEED"] = str(SEED)  # for the worker processes
REPEAT = f"faults: repeat with MUSTER_FAULT_SEED={SEED}"
