"""Documents: reading, unpacking, duplicates, lengths, chunks."""
