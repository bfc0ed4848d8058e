"""`python -m syncd` is the command `syncd`."""

from syncd.commands.main import main

if __name__ == "__main__":
    main()
