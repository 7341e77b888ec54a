"""The commands of `sigma`, one file each: typed options, a settings object, one pipeline call, a printed result."""
