"""`python -m skep.daemon` is skepd."""

from skep.daemon import main

main.main()
