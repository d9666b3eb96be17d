"""The command line: commands, options, presets."""
