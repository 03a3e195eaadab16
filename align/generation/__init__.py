"""Answers of a language model: generators, what they read once, what they have said, stages."""
