"What the tests of faults found, a line of JSON per fault; nbs/faults.ipynb makes a table of the lines."
import json
import os
from collections.abc import Mapping


def tell(fault: str,                    # in words, the same whenever it is tried
         outcomes: Mapping[str, int],   # what happened -> how often
         lost: int = 0                  # how often something was lost, or another answer given
         ):
    "Append to the file that MULTIEXIT_FAULTS names, if it names one."
    if file := os.environ.get("MULTIEXIT_FAULTS"):
        row = dict(fault=fault, times=sum(outcomes.values()), outcomes=dict(outcomes), lost=lost)
        with open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
