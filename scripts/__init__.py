"""SemSim: semi-supervised 2-D segmentation of medical images, the Python package of the bundle."""
