"""The seed of a run, from MUSTER_FAULT_SEED or made up."""

import os
from random import SystemRandom

SEED = int(os.environ.get("MUSTER_FAULT_SEED") or SystemRandom().randrange(2**32))
