"""Composition: the long-running process, put together from the packages below."""
