"""Loading an accountant must not cost anybody their standard error."""

import subprocess
import sys

SCRIPT = """
import io, logging, sys
captured, real = io.StringIO(), sys.stderr
sys.stderr = captured
import fedflow.privacy.accounting
sys.stderr = real
logging.shutdown()
sys.exit(captured.closed)
"""


def test_a_captured_stderr_survives_a_change_of_logging():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
