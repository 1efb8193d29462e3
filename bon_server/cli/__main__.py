"""`python -m bon_server.cli`, where the command `bon` is not on the path."""

from bon_server.cli import main

main()
