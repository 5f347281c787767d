"""Measurements of what the efficiency techniques bring, and where they bring nothing."""
