"""Cases that live better in tests of their own, with the node ids of these."""
