"""A MONAI Label server on this machine: its demonstration and its tests' client."""
