"""Best-of-N over gRPC: sample N, score N, answer with the best, and log every scored candidate durably."""

__version__ = "0.1.0"
