"""Hospitals that share weights and no images: simulated in one process, under NVFlare, and the model that comes out."""
