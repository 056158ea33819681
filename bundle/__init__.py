"""The bundle's own command line, ``python -m bundle COMMAND``; it imports ``scripts``, never the reverse."""
