__version__ = "0.2.0"

import os, sys

if "torch" not in sys.modules:   # before it is loaded: how its threads wait (35_speed)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
