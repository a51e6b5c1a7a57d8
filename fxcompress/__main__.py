"""``python -m fxcompress``."""

from fxcompress.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
