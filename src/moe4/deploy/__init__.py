"""Sizing, manifests and their lint for releases that do not fit on one GPU."""
