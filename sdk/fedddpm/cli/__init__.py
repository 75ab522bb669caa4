"""The command ``fedddpm``: arguments, bars, logs and exit codes; nothing is decided here."""
