"""`python -m vqedge`."""

from vqedge.cli import main

main()
