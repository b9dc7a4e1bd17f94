"""Corrections of Marlin's expert kernel on GPUs."""
