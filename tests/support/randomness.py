"""The seed of a run, from MUSTER_FAULT_SEED or made up."""

import os
from random import SystemRandom

SEED = int(os.environ.get("MUSTER_FAULT_SEED") or SystemRandom().randrange(2**32))
os.environ["MUSTER_FAULT_SEED"] = str(SEED)  # for the processes that a run is divided over
REPEAT = f"faults: repeat with MUSTER_FAULT_SEED={SEED}"
