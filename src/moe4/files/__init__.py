"""Files: only regular ones are opened; one has its name only when it is whole and on disk."""
