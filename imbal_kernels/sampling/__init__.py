"""Neighbours and the samplers built on them, for tensors."""
