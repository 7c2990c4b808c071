"""Batches in, weights and numbers out."""
