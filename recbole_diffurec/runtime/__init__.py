"""Processes, memory, files: knows no model and nothing of RecBole."""
