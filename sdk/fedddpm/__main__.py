"""``python -m fedddpm``: the command, for launchers that start a module (torchrun)."""

from fedddpm.cli.app import main

if __name__ == "__main__":
    main()
