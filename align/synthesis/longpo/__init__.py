"""LongPO's preference data: questions to a chunk, answered from the chunk and from the whole document."""
