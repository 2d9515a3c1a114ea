"""Folders in libraries: locations, whose index every member can read, and mirrors, which also carry the contents."""
