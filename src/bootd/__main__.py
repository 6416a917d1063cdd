"""``python -m bootd``."""

from bootd.cli import main

if __name__ == "__main__":
    main()
