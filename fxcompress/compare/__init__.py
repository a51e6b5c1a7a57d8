"""Snapshots of graphs, and what differs between two of them."""
