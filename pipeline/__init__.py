"""Bytes, labels and order: from a clean set and a noise law to batches."""
