"""LOGO's preference data: questions to chunks, answers with and without what they need."""
