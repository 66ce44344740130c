"""Files: atomic writes, locks, checksums, and reading what others may have changed."""
