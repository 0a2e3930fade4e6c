"""Figures of the whole program, beside bare servers that are measured in the same run. README.md says how."""
