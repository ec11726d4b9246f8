"""`python -m neat_backend.cli`: the same as `neat-backend`."""

from neat_backend.cli import main

if __name__ == "__main__":
    main()
