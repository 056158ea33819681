"""What every room uses: errors, options, files, threads, memory, provenance, licences."""
