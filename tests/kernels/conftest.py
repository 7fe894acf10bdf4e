"""Kernel tests. Those in interpreted/ need TRITON_INTERPRET=1 from the start of a process: the
ordinary run leaves them out here and test_interpreter.py runs them in a process of their own."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
if collect_ignore == []:
    collect_ignore = ["test_static.py", "test_interpreter.py"]
