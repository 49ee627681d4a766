"""`python -m tests.patient_proxy run ...`: the proxy with a mirror that may take its time.

A read waits half a second for it and no longer. On a busy machine that is a matter of luck, which
only the tests of that half second may depend on.
"""

from __future__ import annotations

import sys

from proxy.cli.main import main
from proxy.jobs import reads

if __name__ == "__main__":
    assert reads.READ_PATIENCE < 20.0
    reads.READ_PATIENCE = 20.0
    sys.exit(main())
