"""Files: atomic writes, locks, checksums, and safe reading of files that may have been changed."""
