"""`python -m app` is the tether command."""

from app.cli import main

main()
