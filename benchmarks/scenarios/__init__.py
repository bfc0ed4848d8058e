"""The subjects; each module measures the rows of one."""
