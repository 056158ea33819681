"""Import of DICOM as training data, and sending of results to an archive."""
