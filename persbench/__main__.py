"""`python -m persbench`."""

from persbench.cli import main

main()
