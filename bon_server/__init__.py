"""Best-of-N over gRPC: sample N, score N, answer with the best, and log every scored candidate durably."""

import os

# gRPC's C code prints what callers send with a GOAWAY frame, line ends and terminal escapes too, unless told otherwise.
# It looks when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__version__ = "0.1.0"
