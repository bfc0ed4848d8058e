"""What is measured; each module gives the rows of one subject."""
