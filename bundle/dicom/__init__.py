"""From an archive's DICOM to training data, and results back to the archive."""
