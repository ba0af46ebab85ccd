"""The backends that come with the library, one file each; loaded by entry point, on use."""
