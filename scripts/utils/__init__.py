"""Shared helpers: errors, options, files, threads, memory, provenance, licences."""
