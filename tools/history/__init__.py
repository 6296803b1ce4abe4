"""Histories of what clients called and were answered, and checks of them. Pure; safe in any thread."""
