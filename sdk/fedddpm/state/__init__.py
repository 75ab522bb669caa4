"""The state folder: what must survive a power cut."""
