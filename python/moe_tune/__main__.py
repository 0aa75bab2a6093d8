"""`python -m moe_tune`: the same as the program `moe-tune`."""

from moe_tune._program import main

main()
