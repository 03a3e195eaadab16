"""LongWriter's data: long answers by plan and by trial, scored."""
