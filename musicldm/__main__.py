"""`python -m musicldm`: the command line."""

from musicldm_cli.app import main

main()
