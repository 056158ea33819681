"""Federated training, in which sites share weights but no images: simulation, NVFlare client and global model."""
