"""What `import moe4` offers: a function for each command. They compute and return; none prints."""
