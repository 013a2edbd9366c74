"""Ends at its start, with last words, in the roles that are named.

bettong run crashes.py INPUT OUTPUT FILE ROLE…   While FILE is not there.
"""

import os
import runpy
import sys
from pathlib import Path

mend, roles = Path(sys.argv[3]), sys.argv[4:]
if "BETTONG_STDIN_FD" in os.environ:
    role = "source"
else:
    role = "sink" if "BETTONG_STDOUT_FD" in os.environ else "compute"
if role in roles and not mend.exists():
    sys.exit("the moon is not where it was")
sys.argv[3:] = []
runpy.run_path(str(Path(__file__).with_name("window_lines.py")), run_name="__main__")
