"""`python -m ribozyme.cli`, which `torchrun` and `accelerate launch` start."""

from ribozyme.cli import main

main()
