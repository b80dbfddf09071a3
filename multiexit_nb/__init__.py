__version__ = "0.1.0"

import os, sys

if "torch" not in sys.modules:   # how its threads wait for each other can only be said before it is loaded: see nbs/41_speed.ipynb
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
