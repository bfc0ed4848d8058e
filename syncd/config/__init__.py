"""Configuration: its structure, its validation, and how it is loaded."""
