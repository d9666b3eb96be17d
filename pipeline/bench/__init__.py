"""Speed figures, each from code that anybody can run: ``make bench``."""
