"""Examine the tool that compares trainings with pairs and bugs on which none of its rules was built."""
