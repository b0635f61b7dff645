"""The command line of `musicldm`; the only package that knows typer and rich."""
