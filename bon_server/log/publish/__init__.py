"""Sealed segments go to an object store or a folder, each once, under its own name, which holds its writer's id.

    read ──► put if the name is free ──► confirm ──► describe in a file beside it ──► note in the catalog

publishing   the steps; a crash anywhere has them done again, to the same effect
publisher    the thread that does so while a server runs; commits and sealing never wait for it
store        the store, through `obstore`: a call is tried once, within a time limit, and overwrites nothing

Several writers share one table without knowing of each other. `log.published` holds the catalog's side of it.
"""
