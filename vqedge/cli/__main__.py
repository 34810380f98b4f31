"""`python -m vqedge.cli`."""

from vqedge.cli import main

main()
