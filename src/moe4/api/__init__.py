"""The functions of `import moe4`, one per command. They compute and return; none prints."""
