"""The graph itself: one reading of every dialect, edits that keep provenance, lint and canonical text."""
