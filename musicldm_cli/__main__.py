"""`python -m musicldm_cli`, and `accelerate launch -m musicldm_cli train ...`."""

from musicldm_cli.app import main

main()
