"""`moe4 plan`: what a run would read, write, need and take."""
