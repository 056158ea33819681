"""DICOM in and out. Only :mod:`scripts.data.dicom.volume` can be imported without the packages of the extra `dicom`."""
